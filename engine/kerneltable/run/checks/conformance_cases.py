"""Which problems a kernel is run at for conformance, and which ones it must refuse: read off its own row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from kerneltable.model import Device, Kernel, MultipleOf, OneOf, Predicate, Problem, Range, Scheme, Table
from kerneltable.run.shapes import field_shapes, row_edges
from kerneltable.select import complete, refusals

DTYPES = ("bf16", "f16", "f32")
USUAL_PAIRS = (("bf16", "bf16"), ("f16", "f16"), ("bf16", "bf16"), ("f32", "f32"), ("bf16", "f32"), ("bf16", "f16"))
"""(input, output) dtypes in the order in which the cases of a kernel take them."""

BLOCKS = ((128, 128), (64, 32))
"""Weight blocks tried where a scheme allows any."""


@dataclass(frozen=True, slots=True)
class Case:
    """One problem run on random and on integer-exact data.

    error_over_bound  largest error in units of its bound, random data; infinite when the kernel raised
    faults            what is wrong, in words; empty when all is right
    large             some tensor has more than 2^31 elements; then random data alone, checked in rows spread over all
    """

    problem: Problem
    error_over_bound: float
    faults: tuple[str, ...]
    large: bool = False


@dataclass(slots=True)
class Conformance:
    """What was found of one kernel.

    refused   why it does not run on this device; then no case was run
    skipped   reason -> how many shapes were left out for it
    outside   problems just outside the row, and how many of them were refused, as they must be
    """

    kernel: str
    refused: tuple[str, ...] = ()
    cases: list[Case] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    outside: tuple[int, int] = (0, 0)
    admitted: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest error over bound of all cases, 0 without any."""
        return max((case.error_over_bound for case in self.cases), default=0.0)

    @property
    def sound(self) -> bool:
        """No case is faulty and nothing outside the row was admitted."""
        return not self.admitted and not any(case.faults for case in self.cases)


def plan_cases(
    table: Table, kernel: Kernel, device: Device, *, shapes: int = 40, max_elements: int = 2**30
) -> tuple[list[Problem], Conformance]:
    """The problems to run a kernel at, and its Conformance with all that is known before running.

    shapes        how many, the edges of the row included; 0 for all that fit
    max_elements  the largest of m * k, n * k and m * n
    """
    found = Conformance(kernel.id)
    variants = [v for v in _variants(table) if not refusals(table, kernel.id, device, v)]
    if not variants:
        nearest = min((refusals(table, kernel.id, device, v) for v in _variants(table)), key=len)
        found.refused = tuple(str(refusal) for refusal in nearest)
        return [], found
    pairs = _pairs(table, kernel, device, variants[0])
    at_edge = row_edges(kernel)
    others = tuple(shape for shape in field_shapes() if shape not in at_edge)
    edges = list(_fitting(table, kernel, device, found, variants, pairs, at_edge, max_elements))
    inside = list(_fitting(table, kernel, device, found, variants, pairs, others, max_elements))
    wanted = max(0, shapes - len(edges)) if shapes else len(inside)
    if wanted < len(inside):
        found.skipped[f"fits, not among the {shapes} shapes asked for"] += len(inside) - wanted
        inside = [inside[i * len(inside) // wanted] for i in range(wanted)] if wanted else []
    beyond = list(outside_problems(table, kernel, variants[0]))
    found.admitted = tuple(str(p) for p in beyond if not refusals(table, kernel.id, device, p))
    found.outside = (len(beyond), len(beyond) - len(found.admitted))
    return edges + inside, found


def plan_large(
    table: Table, kernel: Kernel, device: Device, found: Conformance, shapes: tuple[tuple[int, int, int], ...]
) -> list[Problem]:
    """The problems of these large shapes (m, n, k) that the row accepts; the others are counted in found by reason."""
    variants = [v for v in _variants(table) if not refusals(table, kernel.id, device, v)]
    if not variants:
        return []
    pairs = _pairs(table, kernel, device, variants[0])
    return list(_fitting(table, kernel, device, found, variants, pairs, shapes, 2**40))


def outside_problems(table: Table, kernel: Kernel, inside: Problem) -> Iterator[Problem]:
    """Problems that break one predicate of the row's `accepts` each, and are otherwise like `inside`."""
    for predicate in kernel.accepts:
        yield from _breaking(table, predicate, inside)


def _fitting(
    table: Table,
    kernel: Kernel,
    device: Device,
    found: Conformance,
    variants: list[Problem],
    pairs: list[tuple[str, str]],
    shapes: tuple[tuple[int, int, int], ...],
    max_elements: int,
) -> Iterator[Problem]:
    """The shapes that the row accepts, each with the next variant, dtypes and bias; others are counted by reason."""
    for index, (m, n, k) in enumerate(shapes):
        if max(m * k, n * k, m * n) > max_elements:
            found.skipped[f"more than {max_elements} elements"] += 1
            continue
        given, made = pairs[(index + index // len(variants)) % len(pairs)]
        variant = variants[index % len(variants)]
        problem = replace(variant, m=m, n=n, k=k, input=given, output=made, bias=index % 2 == 1)
        refused = refusals(table, kernel.id, device, problem)
        if refused:
            found.skipped[f"{refused[0].predicate}: wanted {refused[0].wanted}"] += 1
        else:
            yield problem


def _variants(table: Table) -> Iterator[Problem]:
    """One completed problem for every combination of quantization details of every scheme, at sizes that suit all."""
    for scheme in table.schemes.values():
        for details in _details(scheme):
            yield complete(scheme, Problem(scheme.name, n=256, k=256, m=16, **details))


def _details(scheme: Scheme) -> Iterator[dict[str, Any]]:
    weight, given = scheme.weight, scheme.input
    blocks = weight.blocks + tuple(b for b in BLOCKS if weight.any_block and b not in weight.blocks)
    for granularity, scale, inputs in product(weight.granularities, weight.scales, given.granularities):
        for block in blocks if granularity == "block" else (None,):
            for scaling in given.scalings if inputs != "none" else ("none",):
                yield {
                    "weight_granularity": granularity,
                    "weight_block": block,
                    "weight_scale": scale,
                    "input_granularity": inputs,
                    "input_scaling": scaling,
                }


def _pairs(table: Table, kernel: Kernel, device: Device, variant: Problem) -> list[tuple[str, str]]:
    """The usual (input, output) dtypes that the row accepts."""
    return [
        (given, made)
        for given, made in USUAL_PAIRS
        if not refusals(table, kernel.id, device, replace(variant, input=given, output=made))
    ]


def _breaking(table: Table, predicate: Predicate, inside: Problem) -> Iterator[Problem]:
    """Problems that the predicate must refuse."""
    name = predicate.key.split(".")[1]
    if isinstance(predicate, MultipleOf) and predicate.divisor > 1:
        yield _with(inside, name, getattr(inside, name) + 1)
    elif isinstance(predicate, Range):
        if isinstance(predicate.minimum, int) and predicate.minimum > 0:
            yield _with(inside, name, predicate.minimum - 1)
        if isinstance(predicate.maximum, int):
            yield _with(inside, name, predicate.maximum + 1)
    elif isinstance(predicate, OneOf):
        yield from _other_words(table, name, predicate, inside)


def _other_words(table: Table, name: str, predicate: OneOf, inside: Problem) -> Iterator[Problem]:
    if name == "schemes":
        others = [s for s in table.schemes.values() if s.name not in predicate.values]
        yield from (complete(s, Problem(s.name, n=256, k=256, m=16)) for s in others)
    elif name in ("input", "output"):
        yield from (_with(inside, name, dtype) for dtype in DTYPES if dtype not in predicate.values)
    else:
        same_scheme = (v for v in _variants(table) if v.scheme == inside.scheme)
        yield from (v for v in same_scheme if _word(v, name) is not None and _word(v, name) not in predicate.values)


def _with(problem: Problem, name: str, value: Any) -> Problem:
    return replace(problem, **{name: value})


def _word(problem: Problem, name: str) -> object:
    """The fact that an accepts key reads, in the table's spelling."""
    value: object = getattr(problem, name, None)
    return f"{value[0]}x{value[1]}" if isinstance(value, tuple) else value
