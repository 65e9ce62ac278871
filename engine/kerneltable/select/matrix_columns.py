"""The columns of a matrix: a scheme with one granularity of weight and input, or several with the same answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kerneltable.model import Table
from kerneltable.select.boxes import Box
from kerneltable.select.predicates import UNASKED
from kerneltable.select.problems import block_text
from kerneltable.select.region_text import whole
from kerneltable.select.space import Axis, Space


@dataclass(frozen=True, slots=True)
class Column:
    """A part of a scheme's problems.

    weights  granularities of the weight in words, takens those of the input; label says what differs from the others
    within   the part as a box of the scheme's space; of columns made one, that of the first
    """

    scheme: str
    weights: tuple[str, ...]
    takens: tuple[str, ...]
    label: str
    within: Box


def columns_of(table: Table, space: Space, *, input: str, output: str) -> Iterator[Column]:
    """One column for each granularity of weight and input that the table can be asked for."""
    known = whole(space, table)
    by_name = {axis.name: place for place, axis in enumerate(space.axes)}
    box = list(known)
    for name, wanted in (("input", input), ("output", output)):
        axis = space.axes[by_name[name]]
        box[by_name[name]] = sum(1 << i for i, facts in enumerate(axis.atoms) if facts[name] == wanted)
    weights, takens = space.axes[by_name["weight"]], space.axes[by_name["taken"]]
    for w in _bits(known[by_name["weight"]], weights):
        for t in _bits(known[by_name["taken"]], takens):
            box[by_name["weight"]], box[by_name["taken"]] = 1 << w, 1 << t
            names = _weight(table, space.scheme, weights, w), _taken(takens, t)
            yield Column(space.scheme, (names[0],), (names[1],), ", ".join(names), tuple(box))


def merged_label(alike: Sequence[Column], every: Sequence[Column]) -> Column:
    """Columns with the same answers as one; the label names every combination that it stands for.

    every   all columns of the scheme: what stands for all of them needs no names
    """
    all_weights, all_takens = _named(every)
    takens_of: dict[str, tuple[str, ...]] = {}
    for column in alike:
        takens_of[column.weights[0]] = (*takens_of.get(column.weights[0], ()), *column.takens)
    by_takens: dict[tuple[str, ...], list[str]] = {}
    for weight, takens in takens_of.items():
        by_takens.setdefault(takens, []).append(weight)
    parts = []
    for takens, alike_weights in by_takens.items():
        said = [f"weight {' or '.join(alike_weights)}"] if len(alike_weights) < len(all_weights) else []
        said += [f"input {' or '.join(takens)}"] if len(takens) < len(all_takens) else []
        parts.append(", ".join(said))
    weights, takens = _named(alike)
    return replace(alike[0], weights=weights, takens=takens, label="; ".join(filter(None, parts)) or "all")


def _named(columns: Sequence[Column]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The granularities of weight and of input among columns of one combination each."""
    weights = tuple(dict.fromkeys(column.weights[0] for column in columns))
    return weights, tuple(dict.fromkeys(column.takens[0] for column in columns))


def _bits(mask: int, axis: Axis) -> list[int]:
    return [place for place in range(len(axis.atoms)) if mask >> place & 1]


def _weight(table: Table, scheme: str, axis: Axis, place: int) -> str:
    """ "channel", "block 128x128", or "any other block" for the one that stands for all that nothing names."""
    facts = axis.atoms[place]
    block = facts["weight_block"]
    if block is UNASKED:
        return str(facts["weight_granularity"])
    weight = table.schemes[scheme].weight
    named = {block_text(known) for known in weight.blocks}
    last = max(i for i, other in enumerate(axis.atoms) if other["weight_block"] is not UNASKED)
    return "any other block" if weight.any_block and place == last and block not in named else f"block {block}"


def _taken(axis: Axis, place: int) -> str:
    facts = axis.atoms[place]
    return "not quantized" if facts["input_granularity"] == "none" else " ".join(map(str, facts.values()))
