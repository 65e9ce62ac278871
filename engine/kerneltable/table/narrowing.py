"""Whether a change to a row claims less than the row did (free) or more (needs `unsafe: true` and a reason)."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.table.node import Node
from kerneltable.table.report import Path
from kerneltable.table.specs import capability, narrower

_FREE = frozenset({"status", "verified", "why", "unsafe", "reason"})
_ALL_OF = frozenset({"features", "ops"})


def changes(before: Node | None, patch: Node, path: Path = ()) -> Iterator[tuple[Path, Node | None, Node]]:
    """Every leaf of a patch with what stood there before: (path, before, after). A list is one leaf."""
    entries = patch.entries()
    if not entries:
        yield path, before, patch
    for name, child in entries.items():
        yield from changes(None if before is None else before.at(name), child, (*path, name))


def widens(path: Path, before: Node | None, after: Node, row: Node) -> bool:
    """True when `after` at `path` of the row may let it take a problem or chip that it refused.

    row  the row before the change
    """
    if path[0] in _FREE or (before is not None and before.plain() == after.plain()):
        return False
    if path[0] == "accepts":
        return bound_widens(str(path[-1]), before, after)
    if path[0] == "needs":
        if path[1] == "ops" or before is None:
            return bound_widens("ops", before, after)
        return not narrower(str(after.value), str(before.value))
    if path[0] == "runs_on" and row.at("runs_on", path[1]) is not None:
        if path[2] == "portable":
            return bool(after.value)
        return bound_widens(str(path[-1]), before, after)
    return True  # a new platform as a whole, or a fact about the code: parameters, layout, numerics, kind, summary


def bound_widens(key: str, before: Node | None, after: Node) -> bool:
    """A new limit narrows; a changed one narrows when it takes a part of what the old one took."""
    if before is None:
        return False
    if key == "min":
        return _order(after) < _order(before)
    if key == "max":
        return _order(after) > _order(before)
    if key == "multiple_of":
        return bool(after.value % before.value)
    old, new = {str(n.value) for n in before.items()}, {str(n.value) for n in after.items()}
    return not new >= old if key in _ALL_OF else not new <= old


def _order(node: Node) -> tuple[int, ...]:
    return capability(node.value) if isinstance(node.value, str) else (node.value,)
