"""Limits of a row, step or erratum to predicates: one leaf of the table, one predicate, one mark."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.model import MultipleOf, Needs, OneOf, Predicate, Range
from kerneltable.table.node import Node
from kerneltable.table.specs import capability

_NEEDS = frozenset({"features", "ops"})
_APART = frozenset({"portable", "platform", "models"})
"""Kept as fields of RunsOn and Denial, not as predicates."""


def predicates(node: Node, key: str) -> Iterator[Predicate]:
    """Every predicate of a mapping of limits; its key is the path, e.g. "accepts.n.multiple_of"."""
    for name, child in node.entries().items():
        if name not in _APART:
            yield from _one(name, child, f"{key}.{name}")


def _one(name: str, node: Node, key: str) -> Iterator[Predicate]:
    if name == "packages":
        for package, spec in node.entries().items():
            yield Needs(key, package, spec.value, spec.mark)
    elif name in _NEEDS:
        for text, item in node.names():
            yield Needs(key, text, None, item.mark)
    elif node.entries():
        for end, bound in node.entries().items():
            yield _bound(end, bound, f"{key}.{end}")
    else:
        yield OneOf(key, tuple(item.value for item in node.items()), node.mark)


def _bound(end: str, node: Node, key: str) -> Predicate:
    if end == "multiple_of":
        return MultipleOf(key, node.value, node.mark)
    limit = capability(node.value) if isinstance(node.value, str) else node.value
    return Range(key, limit, None, node.mark) if end == "min" else Range(key, None, limit, node.mark)
