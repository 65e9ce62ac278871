"""Reading the table: text to nodes, nodes to a frozen Table, with every mistake named at once.

No torch, no accelerator and no environment: the answer depends on the files alone (and, for end dates, on the day).
The files of the shipped table are its own and those of installed packages that bring a layer (plugins.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from kerneltable.errors import ConfigError, Finding
from kerneltable.model import Table
from kerneltable.table.load import Override, read
from kerneltable.table.names import Signatures

__all__ = ["check_table", "load_table"]


def load_table(
    path: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] | str | os.PathLike[str] = (),
    *,
    signatures: Signatures | None = None,
    plugins: bool = True,
    any_writer: bool = False,
) -> Table:
    """Read a table, lay overrides over it in order, check everything, and freeze it.

    path        a table file; None is the table that comes with kerneltable
    overrides   files, or (name, text) pairs; later ones win; one path may stand alone
    signatures  kernel id -> constructor parameter -> whether it is required; rows are checked against them
    plugins     lay what installed packages bring over the shipped table; a table given by path stands alone
    any_writer  take override files that others than this user and root can write; an override decides which code runs
    errors      ConfigError with every finding, sorted by file, line and column; ProblemError for overrides of another
                type
    """
    table, findings = check_table(path, overrides, signatures=signatures, plugins=plugins, any_writer=any_writer)
    if table is None:
        raise ConfigError([finding for finding in findings if finding.severity == "error"])
    return table


def check_table(
    path: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] | str | os.PathLike[str] = (),
    *,
    signatures: Signatures | None = None,
    plugins: bool = True,
    any_writer: bool = False,
) -> tuple[Table | None, tuple[Finding, ...]]:
    """The same without raising ConfigError: the table, or None when it cannot be used; all findings, warnings too."""
    return read(path, overrides, signatures=signatures, plugins=plugins, any_writer=any_writer)
