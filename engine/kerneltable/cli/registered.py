"""Kernels that a table chooses and that nothing on this machine registers: `run` cannot take them; answers say so.

Asks for ids alone: no kernel and no torch is imported. A note and no refusal, since a laptop may be asked about a
machine where the plugin is installed; `check` holds every row against the registry (KT323).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

from kerneltable.model import Selection, Table


def unregistered_notes(table: Table, kernels: Iterable[str | None]) -> list[str]:
    """A note for each of these kernels of the table that is not registered; None stands for no kernel."""
    from kerneltable.kernels.registry import unregistered

    return [
        f"kernel '{kernel}' ({table.kernels[kernel].mark}) is not registered here: no file of kerneltable has this id "
        "and no installed package announces it, so `run` cannot take it; correct the id, or install the package"
        for kernel in unregistered(dict.fromkeys(kernel for kernel in kernels if kernel is not None))
    ]


def say_unregistered(table: Table, kernels: Iterable[str | None]) -> None:
    """The notes on stderr."""
    for note in unregistered_notes(table, kernels):
        print(f"kerneltable: {note}", file=sys.stderr)


def with_unregistered(table: Table, selection: Selection) -> Selection:
    """The selection with a note for each kernel that it would run, for its m or in a band of m, and that is missing."""
    from kerneltable.kernels.registry import unregistered
    from kerneltable.select.bands import kept_by

    if not unregistered(candidate.kernel for candidate in selection.candidates):
        return selection
    computing = (selection.kernel, *(band.kernel for band in kept_by(table, selection).bands))
    return replace(selection, notes=(*selection.notes, *unregistered_notes(table, computing)))
