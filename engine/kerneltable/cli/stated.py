"""What files state beside the values that the table computes with, such as `verified` and `like`; `show` lists both."""

from __future__ import annotations

from collections.abc import Sequence

from kerneltable.cli.values import Path, Value, check_path
from kerneltable.model import Table


def stated(table: Table) -> list[Value]:
    """Every value and list item that stands in the files and is in force, with its place."""
    from kerneltable.table.origin import origins

    return [(tuple(map(str, one.path)), one.text, one.mark) for one in origins(table) if one.removed is None]


def below(values: Sequence[Value], written: Sequence[Value], path: str) -> list[Value]:
    """The values at or below a dotted path, and what is written there that none of them stands for.

    values    of the effective table
    written   of `stated`
    errors    ProblemError with the nearest name when there is neither
    """
    parts = tuple(part for part in path.split(".") if part)
    check_path([value[0] for value in (*values, *written)], path)
    found = [value for value in values if value[0][: len(parts)] == parts]
    paths = {value[0] for value in found}
    above = {one[:end] for one in paths for end in range(len(one) + 1)}
    front = 0
    for value in written:
        if value[0][: len(parts)] == parts and not _is_said(value[0], paths, above):
            place = _place(found, value[0])
            found.insert(place or front, value)
            front += place == 0
    return found


def _is_said(path: Path, paths: set[Path], above: set[Path]) -> bool:
    """Whether a value stands for a path: it has this path, holds the item, or is named like it in the same list."""
    of_list = path[-1].isdigit() and path[:-1] in above
    return path in above or of_list or any(path[:end] in paths for end in range(1, len(path)))


def _place(found: Sequence[Value], path: Path) -> int:
    """Behind the last value with the longest beginning in common; in front when there is none."""
    for length in range(len(path), 0, -1):
        for place in range(len(found), 0, -1):
            if found[place - 1][0][:length] == path[:length]:
                return place
    return 0
