"""Small random tables on the hand-made platforms, and membership in a region worked out without the algebra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from handmade import at, at_least, at_most, deny, kernel, multiple_of, needs, one_of, route, runs_on, table
from hypothesis import strategies as st

from kerneltable.model import Demand, Device, Numerics, Predicate, Problem, Step, Table, Terms
from kerneltable.select import complete, device
from kerneltable.select.boxes import Box
from kerneltable.select.predicates import UNASKED, problem_facts
from kerneltable.select.space import Axis, Space

SIZE = st.integers(0, 13)
ROWS = ("a", "b", "c")
CHIPS = ("sm80", "sm89", "sm90", "sm121", "cuda:13.0")
VERSIONS: tuple[str | None, ...] = (None, "1.0", "2.0", "3.1")


def _size(place: str) -> st.SearchStrategy[Predicate]:
    name = st.sampled_from(("n", "k", "m"))
    return st.one_of(
        st.builds(lambda s, v: at_least(f"{place}.{s}.min", v), name, SIZE),
        st.builds(lambda s, v: at_most(f"{place}.{s}.max", v), name, SIZE),
        st.builds(lambda s, d: multiple_of(f"{place}.{s}.multiple_of", d), name, st.sampled_from((1, 2, 3, 4, 6))),
    )


def _some(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


def _detail(place: str) -> st.SearchStrategy[Predicate]:
    leaves = {
        "schemes": ("fp8", "w8a16"),
        "weight_granularity": ("block", "tensor"),
        "weight_block": ("128x128", "16x16"),
        "weight_scale": ("f32", "e8m0"),
        "input_scaling": ("dynamic", "static"),
        "input": ("bf16", "f16", "f32"),
        "output": ("bf16", "f32"),
        "bias": (False, True),
    }
    return st.sampled_from(sorted(leaves)).flatmap(
        lambda leaf: _some(leaves[leaf]).map(lambda values: one_of(f"{place}.{leaf}", *values))
    )


def _chip(place: str) -> st.SearchStrategy[Predicate]:
    capability = st.sampled_from(((8, 0), (8, 9), (9, 0), (12, 0), (12, 9)))
    return st.one_of(
        st.builds(lambda v: at_least(f"{place}.capability.min", v), capability),
        st.builds(lambda v: at_most(f"{place}.capability.max", v), capability),
        st.builds(lambda v: one_of(f"{place}.architectures", *v), _some(("sm80", "sm90", "sm121"))),
        st.builds(lambda v: one_of(f"{place}.families", *v), _some(("sm8x", "sm12x"))),
        st.builds(lambda v: needs(f"{place}.features", v), st.sampled_from(("mma_fp8", "wgmma"))),
    )


def _package(place: str) -> st.SearchStrategy[Predicate]:
    spec = st.sampled_from((">=1", ">=2", "<2", ">=2,<3", "!=2.0", "==3.1"))
    return st.builds(lambda name, v: needs(f"{place}.packages", name, v), st.sampled_from(("torch", "extra")), spec)


def _list(*strategies: Any, most: int = 2) -> st.SearchStrategy[tuple[Predicate, ...]]:
    return st.lists(st.one_of(*strategies), max_size=most).map(tuple)


def _row(name: str) -> st.SearchStrategy[Any]:
    place = st.builds(
        lambda p, portable: runs_on("cuda", *p, portable=portable), _list(_chip("runs_on")), st.booleans()
    )
    return st.builds(
        lambda accepts, on, need, kind, layout, promises: replace(
            kernel(name, *accepts, on=[on], need=need, kind=kind),
            layout=layout,
            numerics=Numerics("f32", *promises, at(21)),
        ),
        _list(_size("accepts"), _size("accepts"), _detail("accepts"), most=4),
        place,
        _list(_package("needs"), most=1),
        st.sampled_from(("native", "emulation")),
        st.sampled_from(("checkpoint", "tiles", "marlin", "strips")),
        st.tuples(st.booleans(), st.booleans()),
    )


TERMS = st.builds(
    lambda copies, names: Terms(copies, at(80), tuple(Demand(name, at(81)) for name in names)),
    st.integers(0, 2),
    st.sampled_from(((), (), (), ("batch_invariant",), ("deterministic",), ("batch_invariant", "deterministic"))),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A route fp8/cuda of up to four steps over three random rows, with errata, `when`, `require`, `prefer`, terms."""
    rows = {name: draw(_row(name)) for name in ROWS}
    when = st.one_of(st.just(()), _list(_size("when"), _detail("when"), _chip("when"), _package("when")))
    named = draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=4))
    steps = [Step(name, draw(when), rows[name].mark) for name in named]
    chosen = draw(st.sampled_from((None, None, None, *named)))
    choice = {draw(st.sampled_from(("require", "prefer"))): chosen}
    limits = _list(_size("when"), _detail("when"), _chip("when"), _package("when"))
    denials = [
        deny(draw(st.sampled_from(ROWS)), *draw(limits), platform=draw(st.sampled_from((None, "cuda", "rocm"))))
        for _ in range(draw(st.integers(0, 2)))
    ]
    made = replace(route("fp8", "cuda", *steps, **choice), terms=draw(TERMS))
    return table(made, rows=rows, denials=tuple(denials))


@st.composite
def devices(draw: st.DrawFn, made: Table) -> Device:
    """A named chip with assumed packages, or with some of given versions."""
    versions = draw(st.one_of(st.none(), st.tuples(st.sampled_from(VERSIONS), st.sampled_from(VERSIONS))))
    if versions is None:
        return device(draw(st.sampled_from(CHIPS)), made)
    installed = {name: version for name, version in zip(("torch", "extra"), versions, strict=True) if version}
    return device(draw(st.sampled_from(CHIPS)), made, packages=installed)


@st.composite
def details(draw: st.DrawFn) -> dict[str, Any]:
    """The finite part of a problem of the scheme fp8."""
    block = draw(st.sampled_from((None, (128, 128), (16, 16), (7, 9))))
    scales = {"weight_scale": draw(st.sampled_from(("f32", "e8m0")))}
    shape = {"weight_granularity": "tensor"} if block is None else {"weight_block": block}
    kinds = {name: draw(st.sampled_from(("bf16", "f16", "f32"))) for name in ("input", "output")}
    scaling = draw(st.sampled_from(("dynamic", "static")))
    return {**scales, **shape, **kinds, "input_scaling": scaling, "bias": draw(st.booleans())}


def grid(made: Table, finite: dict[str, Any]) -> Iterator[Problem]:
    """Every small problem with these details, an unknown m and sizes of 0 among them; completed."""
    for n, k, m in product(range(0, 15), (0, 1, 2, 3, 4, 6, 8, 12, 13), (None, 0, 1, 2, 3, 6, 12, 13)):
        yield complete(made.schemes["fp8"], Problem("fp8", n=n, k=k, m=m, **finite))


def place_of(axis: Axis, problem: Problem) -> int:
    """The one atom of an axis that a problem belongs to."""
    facts = problem_facts(problem)
    if axis.cells:
        size = facts[axis.name]
        divisors = {divisor for cell in axis.cells if cell is not None for divisor in cell.multiples}
        found = [place for place, cell in enumerate(axis.cells) if _inside(cell, size, divisors)]
    else:
        found = [place for place, atom in enumerate(axis.atoms) if atom == {name: facts[name] for name in atom}]
        unnamed = not found and axis.other is not None and facts["weight_block"] is not UNASKED
        found = [axis.other] if unnamed and axis.other is not None else found
    (place,) = found
    return place


def _inside(cell: Any, size: int | None, divisors: set[int]) -> bool:
    if cell is None or size is None:
        return cell is None and size is None
    same = {d for d in divisors if size % d == 0} == set(cell.multiples)
    return bool(cell.low <= size <= cell.high and same)


def holds(space: Space, box: Box, problem: Problem) -> bool:
    """Whether a problem lies in a box."""
    return all(mask >> place_of(axis, problem) & 1 for axis, mask in zip(space.axes, box, strict=True))
