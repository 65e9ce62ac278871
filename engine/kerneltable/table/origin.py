"""Where every value of a table comes from: who set it, what it replaced, and what was taken out by which line.

Worked out from the texts that the table keeps of its layers: each override is laid over the table once more, and
what is there before and after is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from kerneltable.model import Mark, Table
from kerneltable.table.merge import Merged, kernel_of, listed_kernels
from kerneltable.table.node import Node
from kerneltable.table.nodes import read_nodes
from kerneltable.table.origin_chips import chip_values
from kerneltable.table.origin_text import Earlier, Origin, said
from kerneltable.table.override import apply_override
from kerneltable.table.report import Path, Report

__all__ = ["Origin", "origins"]


@dataclass(slots=True)
class _Value:
    """A scalar or list item that some layer holds: its text and place now, and before."""

    text: str
    mark: Mark
    replaced: tuple[Earlier, ...] = ()


@dataclass(slots=True)
class _History:
    """What the layers read so far hold."""

    scalars: dict[Path, _Value] = field(default_factory=dict)
    items: dict[Path, dict[tuple[str, int], _Value]] = field(default_factory=dict)
    removed: dict[Path, dict[tuple[str, int], Origin]] = field(default_factory=dict)


def origins(table: Table) -> tuple[Origin, ...]:
    """Every value and list item of the effective table, and the items that were removed, in the order of the file.

    table    as `load_table` gave it; its layers hold the texts that are read again
    returns  removed items stand behind the list that they stood in; what `like` copies has a note
    """
    report = Report()
    base, *above = table.layers
    root = read_nodes(base.text.removeprefix("\ufeff"), base.name, report)
    if root is None:  # a table made by hand, without the text it came from
        return ()
    merged = Merged(root, listed=listed_kernels(root))
    history = _History()
    _note(history, merged, None)
    for layer in above:
        override = read_nodes(layer.text.removeprefix("\ufeff"), layer.name, report)
        if override is not None:
            apply_override(merged, override, report)
            _note(history, merged, override)
    return tuple(_listing(history, merged))


def _sections(merged: Merged) -> Iterator[tuple[Path, Node]]:
    """The parts of a merged table that hold values."""
    for name, node in merged.root.entries().items():
        if name != "$schema":
            yield (name,), node
    for verb, chosen in (("require", merged.require), ("prefer", merged.prefer)):
        for key, node in chosen.items():
            yield ("routes", *key, verb), node
    for key, node in merged.plans.items():
        yield ("routes", *key, "plans"), node
    for place, row in enumerate(merged.disables.values()):
        yield ("disable", place), row


def _leaves(path: Path, node: Node) -> Iterator[tuple[Path, Node]]:
    """Scalars and lists below a node; a list of mappings such as `errata` is not a leaf, a route is."""
    is_rows = path[0] != "routes" and any(item.entries() for item in node.items())
    if node.entries():
        for name, child in node.entries().items():
            yield from _leaves((*path, name), child)
    elif is_rows:
        for place, child in enumerate(node.items()):
            yield from _leaves((*path, place), child)
    else:
        yield path, node


def _note(history: _History, merged: Merged, override: Node | None) -> None:
    """Take over what the table holds after one more layer."""
    for top, section in _sections(merged):
        for path, node in _leaves(top, section):
            if isinstance(node.value, tuple):
                _note_list(history, path, node, override)
            else:
                before = history.scalars.get(path) or _other_choice(history, path)
                history.scalars[path] = _later(before, node)


def _other_choice(history: _History, path: Path) -> _Value | None:
    """What a route required where it prefers a kernel now, or the other way round; forgotten in its own place."""
    verb = {"require": "prefer", "prefer": "require"}.get(str(path[-1])) if path[0] == "routes" else None
    found = None if verb is None else history.scalars.pop((*path[:-1], verb), None)
    return None if found is None else _Value(f"{verb}: {found.text}", found.mark, found.replaced)


def _later(before: _Value | None, node: Node) -> _Value:
    text = said(node)
    if before is None or before.mark == node.mark:
        return _Value(text, node.mark, before.replaced if before else ())
    return _Value(text, node.mark, (*before.replaced, Earlier(before.text, before.mark)))


def _note_list(history: _History, path: Path, node: Node, override: Node | None) -> None:
    gone = history.removed.setdefault(path, {})
    before = {key: _Value(one.text, one.mark, one.replaced) for key, one in gone.items()}
    before |= history.items.get(path, {})
    items = node.items()
    now = {key: _later(before.get(key), item) for key, item in zip(_keys(items, before), items, strict=True)}
    for key, value in before.items():
        if key in now:
            gone.pop(key, None)
        elif override is not None and key not in gone:
            by = _remover(override, path, key[0]) or node.mark
            gone[key] = Origin(path, value.text, value.mark, value.replaced, removed=by)
    history.items[path] = now


def _keys(items: Sequence[Node], before: Mapping[tuple[str, int], _Value]) -> list[tuple[str, int]]:
    """A key for each item: that of the earlier one at its place, else with its text, else of its name; or a new one."""
    names = [kernel_of(item) or said(item) for item in items]
    keys: dict[int, tuple[str, int]] = {}
    taken: set[tuple[str, int]] = set()
    for same in (lambda old, new: old.mark == new.mark, lambda old, new: old.text == said(new), lambda old, new: True):
        for place, item in enumerate(items):
            free = ((key, value) for key, value in before.items() if key[0] == names[place] and key not in taken)
            fits = (key for key, value in free if same(value, item))
            key = None if place in keys else next(fits, None)
            if key is not None:
                keys[place] = key
                taken.add(key)
    for place, name in enumerate(names):
        if place not in keys:
            keys[place] = (name, next(n for n in count() if (name, n) not in taken and (name, n) not in before))
            taken.add(keys[place])
    return [keys[place] for place in range(len(items))]


def _remover(override: Node, path: Path, name: str) -> Mark | None:
    """The place in an override that takes an item out of a list."""
    order = override.at(*path, "order")
    if order is None:
        return None
    for item in (order.at("remove") or order).items():
        if item.value == name:
            return item.mark
    whole = order.at("replace")
    return whole.mark if whole is not None else order.mark


def _listing(history: _History, merged: Merged) -> Iterator[Origin]:
    for top, section in sorted(_sections(merged), key=lambda part: _rank(part[0])):
        for path, node in _leaves(top, section):
            if not isinstance(node.value, tuple):
                value = history.scalars[path]
                yield Origin(path, value.text, value.mark, value.replaced)
                continue
            for place, item in enumerate(history.items[path].values()):
                yield Origin((*path, place), item.text, item.mark, item.replaced)
            yield from history.removed.get(path, {}).values()
        if top == ("platforms",):
            yield from chip_values(section)


def _rank(path: Path) -> int:
    """Sections in the order in which people read them; what a deployment forces stands beside its route."""
    order = ("table", "platforms", "schemes", "kernels", "routes", "plans", "errata", "disable")
    return order.index(str(path[0])) if path[0] in order else len(order)
