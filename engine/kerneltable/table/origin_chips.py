"""What an architecture copies with `like`, each fact with the place that states it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from kerneltable.table.names import entries, items
from kerneltable.table.node import Node
from kerneltable.table.origin_text import Origin, said
from kerneltable.table.platforms import lineage
from kerneltable.table.report import Path

_COPIED = ("shared_memory_kib", "fp8", "target")


def chip_values(platforms: Node) -> Iterator[Origin]:
    """The facts that architectures of the platforms copy; each has a note with the architecture it comes from."""
    for platform, node in platforms.entries().items():
        architectures = entries(node, "architectures")
        for name in architectures:
            if len(lineage(architectures, name)) > 1:
                yield from _copied(("platforms", platform, "architectures", name), architectures, name)


def _copied(path: Path, architectures: Mapping[str, Node], name: str) -> Iterator[Origin]:
    chain = lineage(architectures, name)
    for key in _COPIED:
        link, node = next(((link, n) for link in chain if (n := architectures[link].at(key))), (name, None))
        if node is not None and link != name:
            yield Origin((*path, key), said(node), node.mark, note=f"like {link}")
    features: dict[str, Origin] = {}
    gone: list[Origin] = []
    for link in reversed(chain):
        for key in ("features", "adds"):
            for text, item in items(architectures[link], key):
                features[text] = Origin((*path, "features"), text, item.mark, note=f"like {link}")
        for text, item in items(architectures[link], "removes"):
            if text in features and link == name:
                gone.append(Origin((*path, "features"), text, features[text].mark, removed=item.mark))
            features.pop(text, None)
    for place, origin in enumerate(features.values()):
        if origin.note != f"like {name}":
            yield replace(origin, path=(*path, "features", place))
    yield from gone
