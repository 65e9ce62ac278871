"""One value of a YAML document and where it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kerneltable.model import Mark
from kerneltable.table.report import Path

_NO_KEYS: Mapping[str, Mark] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document and where it is written.

    value    text, int, bool, a tuple of nodes, or a dict of name -> node; None when refused
    length   characters of the source line to underline
    written  a scalar as it stands in the file
    keys     name -> place of the key, for a mapping
    refused  True when a finding already speaks of this value; nothing else is said about it
    """

    value: Any
    mark: Mark
    length: int = 1
    written: str = ""
    keys: Mapping[str, Mark] = field(default_factory=lambda: _NO_KEYS)
    refused: bool = False

    def entries(self) -> Mapping[str, Node]:
        """The entries of a mapping; none for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def items(self) -> tuple[Node, ...]:
        """The items of a list; none for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    def at(self, *path: str | int) -> Node | None:
        """The node below this one, or None when there is none."""
        node: Node | None = self
        for part in path:
            if node is None:
                return None
            if isinstance(part, int):
                items = node.items()
                node = items[part] if part < len(items) else None
            else:
                node = node.entries().get(part)
        return node

    def text(self) -> str | None:
        """The text of a scalar, or None when this is anything else."""
        return self.value if isinstance(self.value, str) else None

    def names(self) -> list[tuple[str, Node]]:
        """The items of a list that are text, each with its node."""
        return [(item.value, item) for item in self.items() if isinstance(item.value, str)]

    def plain(self) -> Any:
        """The same as dicts, lists and scalars, without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every node below and with this one, parents first, each with its path."""
    yield path, node
    for key, child in node.entries().items():
        yield from walk(child, (*path, key))
    for place, child in enumerate(node.items()):
        yield from walk(child, (*path, place))
