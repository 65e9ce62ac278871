"""A value with its history, and how a value is written in one line."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kerneltable.model import Mark
from kerneltable.table.merge import kernel_of
from kerneltable.table.node import Node
from kerneltable.table.report import Path


@dataclass(frozen=True, slots=True)
class Earlier:
    """What stood somewhere before a later layer: the text and its place."""

    text: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Origin:
    """One value of the effective table.

    path      the place in the table; of a removed item the list that it stood in
    replaced  what earlier layers said here, oldest first
    removed   the place of the line that took the item out, None while it stands
    note      "like sm80" for a fact that an architecture copies
    """

    path: Path
    text: str
    mark: Mark
    replaced: tuple[Earlier, ...] = ()
    removed: Mark | None = None
    note: str = ""


def said(node: Node) -> str:
    """A scalar, or a step of a route, as people write it: `triton_w8a16 when {m: {max: 64}}`."""
    when = node.at("when")
    if when is not None:
        return f"{kernel_of(node)} when {_inline(when)}"
    return _inline(node)


def _inline(node: Node) -> str:
    if node.entries():
        return "{" + ", ".join(f"{name}: {_inline(child)}" for name, child in node.entries().items()) + "}"
    if isinstance(node.value, tuple):
        return "[" + ", ".join(_inline(item) for item in node.items()) + "]"
    return node.value if isinstance(node.value, str) else json.dumps(node.value)
