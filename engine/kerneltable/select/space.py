"""The space of all problems of one scheme, cut into atoms that the predicates of some tables cannot tell apart.

An axis is one independent fact of a problem, or two that hang together (a granularity and its block). Its atoms are
represented by facts; predicates are held against these by `predicates.misses`, so that the algebra cannot mean
something else than the selection does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from kerneltable.errors import ProblemError
from kerneltable.model import OneOf, Predicate, Problem, Route, Scheme, Table
from kerneltable.select.atoms import Cell, cells_of
from kerneltable.select.boxes import Box
from kerneltable.select.predicates import FACT_OF, UNASKED, misses
from kerneltable.select.problems import DTYPES, block_text, complete

Facts = dict[str, Any]
DETAILS = {
    "weight": ("weight_granularity", "weight_block"),
    "weight_scale": ("weight_scale",),
    "taken": ("input_granularity", "input_scaling"),
    "input": ("input",),
    "output": ("output",),
    "bias": ("bias",),
}
SIZES = ("n", "k", "m")
AXIS_OF = {fact: axis for axis, facts in DETAILS.items() for fact in facts} | {size: size for size in SIZES}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: the facts of a representative of each atom; for a size also its cells, None for an unknown m.

    other   the place of the atom that stands for every block that nobody names, or None
    """

    name: str
    atoms: tuple[Facts, ...]
    cells: tuple[Cell | None, ...] = ()
    other: int | None = None

    @property
    def full(self) -> int:
        """The mask of all atoms."""
        return (1 << len(self.atoms)) - 1


@dataclass(frozen=True, slots=True)
class Space:
    """All problems of one scheme. masks and domains remember what each predicate and table came to."""

    scheme: str
    axes: tuple[Axis, ...]
    masks: dict[tuple[Predicate, bool], int] = field(default_factory=dict, repr=False)
    domains: dict[Table, Box | None] = field(default_factory=dict, repr=False)

    @property
    def full(self) -> Box:
        """Every problem, sizes of 0 too."""
        return tuple(axis.full for axis in self.axes)

    @property
    def ordinary(self) -> Box:
        """The problems with n, k and m of at least 1; an unknown m is one of them."""
        return tuple(_positive(axis) if axis.cells else axis.full for axis in self.axes)

    def box(self, predicates: Iterable[Predicate], *, denial: bool = False) -> Box | None:
        """The problems that fit every predicate about problems; None when no problem does.

        denial   an unknown m then fits predicates on m: a denial of some m holds for it
        """
        box = list(self.full)
        for predicate in predicates:
            fact = FACT_OF[predicate.key]
            if fact == "scheme":
                if misses("", (predicate,), {"scheme": self.scheme}):
                    return None
                continue
            place = next((i for i, axis in enumerate(self.axes) if axis.name == AXIS_OF.get(fact)), None)
            if place is not None:
                box[place] &= self._mask(self.axes[place], predicate, denial)
        return tuple(box) if all(box) else None

    def problem(self, box: Box) -> Problem:
        """The simplest problem of a box: the scheme's first details, the smallest sizes, m unknown if it may be."""
        facts: Facts = {}
        for axis, mask in zip(self.axes, box, strict=True):
            facts |= axis.atoms[simplest(axis, mask)]
        block = facts.pop("weight_block")
        sides = None if block is UNASKED else tuple(int(side) for side in block.split("x"))
        return Problem(self.scheme, weight_block=sides, **facts)  # type: ignore[arg-type]

    def _mask(self, axis: Axis, predicate: Predicate, denial: bool) -> int:
        key = (predicate, denial)
        mask = self.masks.get(key)
        if mask is None:
            mask = 0
            for place, facts in enumerate(axis.atoms):
                unknown = denial and axis.name == "m" and facts["m"] is None
                if unknown or not misses("", (predicate,), facts):
                    mask |= 1 << place
            self.masks[key] = mask
        return mask


def about_problems(predicate: Predicate) -> bool:
    """Whether a predicate asks about the problem; if not, it asks about the device."""
    fact = FACT_OF[predicate.key]
    return fact == "scheme" or fact in AXIS_OF


def simplest(axis: Axis, mask: int) -> int:
    """The atom of a mask to show first: an unknown m, the smallest size, or the scheme's first detail."""
    places = [place for place in range(len(axis.atoms)) if mask >> place & 1]
    return min(places, key=lambda place: _rank(axis, place))


def space_of(scheme: str, *tables: Table, also: Iterable[Predicate] = ()) -> Space:
    """The space of a scheme whose atoms none of the tables can tell apart.

    A detail that only one of the tables knows is in the space too: see `domain`.
    also   predicates of rows that no route of the scheme lists
    """
    known = [table.schemes[scheme] for table in tables if scheme in table.schemes]
    asked = list(dict.fromkeys((*also, *(p for table in tables for p in _predicates(table, scheme)))))
    by_axis: dict[str, list[Predicate]] = {}
    for predicate in asked:
        fact = FACT_OF[predicate.key]
        by_axis.setdefault(AXIS_OF.get(fact, fact), []).append(predicate)
    named = {v for p in by_axis.get("weight", ()) if isinstance(p, OneOf) and p.key.endswith("block") for v in p.values}
    blocks = {str(value) for value in named} | {block_text(block) for s in known for block in s.weight.blocks}
    details: dict[str, list[Facts]] = {
        "weight": _unique(facts for s in known for facts in _weights(s, blocks)),
        "weight_scale": _unique({"weight_scale": v} for s in known for v in s.weight.scales or ("none",)),
        "taken": _unique(facts for s in known for facts in _taken(s)),
        "input": [{"input": dtype} for dtype in DTYPES],
        "output": [{"output": dtype} for dtype in DTYPES],
        "bias": [{"bias": False}, {"bias": True}],
    }
    other = {"weight_granularity": "block", "weight_block": _other_block(blocks)}
    axes = [Axis(n, tuple(atoms), other=atoms.index(other) if other in atoms else None) for n, atoms in details.items()]
    return Space(scheme, (*axes, *(_size_axis(size, by_axis.get(size, [])) for size in SIZES)))


def domain(space: Space, table: Table) -> Box | None:
    """The problems of the space that a table can be asked: the others have a detail that its scheme does not know."""
    if table not in space.domains:
        scheme = table.schemes.get(space.scheme)
        known = (0,) if scheme is None else tuple(_known(space, axis, scheme) for axis in space.axes)
        space.domains[table] = known if all(known) else None
    return space.domains[table]


def _known(space: Space, axis: Axis, scheme: Scheme) -> int:
    """The atoms of an axis that `complete` takes; every size is taken."""
    if axis.cells:
        return axis.full
    mask = 0
    for place, facts in enumerate(axis.atoms):
        asked = {name: value for name, value in facts.items() if value is not UNASKED}
        if "weight_block" in asked:
            asked["weight_block"] = tuple(int(side) for side in asked["weight_block"].split("x"))
        try:
            complete(scheme, Problem(space.scheme, n=1, k=1, **asked))
        except ProblemError:
            continue
        mask |= 1 << place
    return mask


def _predicates(table: Table, scheme: str) -> Iterator[Predicate]:
    """Every predicate that can bear on a problem of the scheme."""
    for route in table.routes.values():
        if route.scheme == scheme:
            for kernel in _kernels(route):
                yield from table.kernels[kernel].accepts
                yield from (p for d in table.denials if d.kernel == kernel for p in d.predicates)
            for step in route.steps:
                yield from step.when


def _kernels(route: Route) -> list[str]:
    chosen = [choice.kernel for choice in (route.require, route.prefer) if choice is not None]
    return list(dict.fromkeys([*(step.kernel for step in route.steps), *chosen]))


def _unique(facts: Iterable[Facts]) -> list[Facts]:
    return list({tuple(sorted(fact.items(), key=lambda pair: pair[0])): fact for fact in facts}.values())


def _weights(scheme: Scheme, blocks: set[str]) -> Iterator[Facts]:
    """Granularities of the weight; for blocks the scheme's own, then those that are named anywhere, then one other."""
    own = [block_text(block) for block in scheme.weight.blocks]
    more = [*sorted(blocks - set(own)), _other_block(blocks)] if scheme.weight.any_block else []
    for granularity in scheme.weight.granularities or ("none",):
        if granularity == "block":
            yield from ({"weight_granularity": granularity, "weight_block": block} for block in (*own, *more))
        else:
            yield {"weight_granularity": granularity, "weight_block": UNASKED}


def _other_block(blocks: set[str]) -> str:
    """A block that is none of these; it stands for all of them."""
    return next(text for side in chain((64, 32, 16), count(1)) if (text := f"{side}x{side}") not in blocks)


def _taken(scheme: Scheme) -> Iterator[Facts]:
    for granularity in scheme.input.granularities or ("none",):
        scalings = ("none",) if granularity == "none" else scheme.input.scalings or ("none",)
        yield from ({"input_granularity": granularity, "input_scaling": scaling} for scaling in scalings)


def _size_axis(size: str, predicates: Sequence[Predicate]) -> Axis:
    cells: tuple[Cell | None, ...] = cells_of(predicates)
    if size == "m":
        cells = (None, *cells)
    return Axis(size, tuple({size: None if cell is None else cell.smallest} for cell in cells), cells)


def _positive(axis: Axis) -> int:
    return sum(1 << place for place, cell in enumerate(axis.cells) if cell is None or cell.smallest > 0)


def _rank(axis: Axis, place: int) -> int:
    if not axis.cells:
        return place
    cell = axis.cells[place]
    return -1 if cell is None else cell.smallest
