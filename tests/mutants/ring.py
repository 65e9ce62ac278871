"""The fast ring, in one process: what `make test` says about a table without running a kernel.

Stages, quickest first; the first one that objects has killed the mutant:
registry    kernel files and table rows are the same set
check       `kerneltable check`: any finding of reading, constructors included
rows        tests/golden/rows.txt
selections  tests/golden/selections.txt and selections_with_all.txt
proofs      `kerneltable check`: any warning or error that set algebra proves
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import regenerate
import rows

from kerneltable.cli.proofs import with_proofs
from kerneltable.errors import KernelTableError
from kerneltable.kernels.registry import signatures
from kerneltable.model import Table
from kerneltable.table import load_table
from kerneltable.table.load import read

STAGES = ("registry", "check", "rows", "selections", "proofs")
Data = dict[str, Any]


class Ring:
    """The fast ring with what it needs to know read once."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "mutant.yaml"
        self.signatures = signatures()
        self.golden = {
            file: file.read_text(encoding="utf-8") for file in (rows.FILE, regenerate.FILE, regenerate.FILE_WITH_ALL)
        }

    def killed_by(self, data: Data) -> str | None:
        """The stage that objects to this table, or None."""
        if set(data.get("kernels") or ()) != set(self.signatures):
            return "registry"
        self.file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        table, findings = read(self.file, (), signatures=self.signatures)
        if table is None or findings:
            return "check"
        later: Mapping[str, Callable[[Table], bool]] = MappingProxyType(
            {"rows": partial(self._differs, (rows.FILE,)), "selections": self._selects, "proofs": _proves}
        )
        return next((stage for stage, objects in later.items() if objects(table)), None)

    def table_of(self, data: Data) -> Table:
        """The table that this data makes; ConfigError when it cannot be used."""
        self.file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return load_table(self.file, signatures=self.signatures)

    def _selects(self, table: Table) -> bool:
        return self._differs((regenerate.FILE, regenerate.FILE_WITH_ALL), table)

    def _differs(self, files: tuple[Path, ...], table: Table) -> bool:
        made = {
            rows.FILE: partial(rows.lines, table),
            regenerate.FILE: partial(regenerate.lines, table),
            regenerate.FILE_WITH_ALL: partial(regenerate.lines, table, "all"),
        }
        try:
            return any("\n".join(made[file]()) + "\n" != self.golden[file] for file in files)
        except KernelTableError:  # a question of the golden file that this table cannot be asked
            return True


def _proves(table: Table) -> bool:
    return bool(with_proofs(table, (), "", notes=False))
