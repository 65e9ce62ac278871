"""Bands of m: how the choice for one layer changes with its rows, and what its plan keeps in memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from kerneltable.model import CHECKPOINT, Device, Mark, MultipleOf, Problem, Range, Route, Selection, Table
from kerneltable.model.predicates import LARGEST_SIZE
from kerneltable.select.atoms import cells_of, divisors_of
from kerneltable.select.select import select
from kerneltable.select.terms import Bytes, bytes_of, row_predicates


@dataclass(frozen=True, slots=True)
class Rows:
    """The m that a route tells apart: those with one `place` get the same answer.

    starts     the first m of each interval, rising
    divisors   what limits of the form `multiple_of` ask for; mostly none
    """

    starts: tuple[int, ...]
    divisors: tuple[int, ...]

    def place(self, m: int) -> int | tuple[int | bool, ...]:
        """The interval of m (at least 1), with which divisors divide m."""
        interval = bisect_right(self.starts, m)
        return (interval, *(m % divisor == 0 for divisor in self.divisors)) if self.divisors else interval


def rows_of(table: Table, device: Device, scheme: str) -> Rows | None:
    """What a route tells apart in m; None when its choice is the same for every m."""
    route = table.routes.get((scheme, device.platform))
    if route is None or route.terms.one_kernel is not None:
        return None
    predicates = tuple(row_predicates(table, route))
    if not predicates:
        return None
    ends = [(p.minimum, p.maximum) for p in predicates if isinstance(p, Range)]
    starts = {1, *(low for low, _ in ends if isinstance(low, int))}
    starts |= {high + 1 for _, high in ends if isinstance(high, int)}
    return Rows(tuple(sorted(start for start in starts if start > 0)), divisors_of(predicates))


@dataclass(frozen=True, slots=True)
class Band:
    """The m from first to last (None: without end) that one kernel computes; kernel None: nothing takes them.

    multiples  the band holds only multiples of these; mostly none
    steps      where the steps of the route stand that give these m to the kernel
    """

    first: int
    last: int | None
    kernel: str | None
    multiples: tuple[int, ...] = ()
    steps: tuple[Mark, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> str:
        """Its m in words: "m 1 to 32"."""
        rows = f"m from {self.first}" if self.last is None else f"m {self.first} to {self.last}"
        rows = f"m {self.first}" if self.first == self.last else rows
        rows = "any m" if self.last is None and self.first == 1 else rows
        return rows + (f" (multiples of {', '.join(map(str, self.multiples))})" if self.multiples else "")

    def __str__(self) -> str:
        return f"{self.rows}: {self.kernel or 'no kernel'}"


@dataclass(frozen=True, slots=True)
class Kept:
    """The plan of a layer, as the table has it: its bands, and the weights that it keeps.

    weights   what the tensors of the checkpoint take; a packed copy takes about as much
    copies    the layouts that kernels of its bands want packed copies in
    allowed   how many there may be; None: a caller forced the kernel, and nothing is counted
    demands   what every kernel of the route must promise
    """

    bands: tuple[Band, ...]
    weights: Bytes
    copies: tuple[str, ...]
    allowed: int | None
    demands: tuple[str, ...]


def kept_by(table: Table, selection: Selection) -> Kept:
    """The bands and the memory of the layer that a selection is about, whatever its m."""
    problem, device = selection.problem, selection.device
    route = table.routes.get((problem.scheme, device.platform))
    asked = select(table, device, problem)
    if route is None or asked.candidates != selection.candidates:  # forced: no route was gone through
        bands: tuple[Band, ...] = (Band(1, None, selection.kernel),)
        allowed = None
    else:
        bands, allowed = _bands(table, device, problem, route), route.terms.weight_copies
    layouts = dict.fromkeys(table.kernels[band.kernel].layout for band in bands if band.kernel is not None)
    copies = tuple(layout for layout in layouts if layout != CHECKPOINT)
    demands = () if route is None else tuple(demand.name for demand in route.terms.demands)
    return Kept(bands, bytes_of(problem), copies, allowed, demands)


def _bands(table: Table, device: Device, problem: Problem, route: Route) -> tuple[Band, ...]:
    predicates = () if route.terms.one_kernel is not None else tuple(row_predicates(table, route))
    plain = not any(isinstance(predicate, MultipleOf) and predicate.divisor > 1 for predicate in predicates)
    found: list[Band] = []
    for cell in cells_of(predicates):
        if cell.smallest < 1:
            continue
        answer = select(table, device, problem.at(cell.smallest))
        kernel, steps = answer.kernel, tuple(c.where for c in answer.candidates if c.verdict == "chosen")
        last = None if cell.high == LARGEST_SIZE else cell.high
        if plain and found and found[-1].kernel == kernel:
            found[-1] = Band(found[-1].first, last, kernel, steps=found[-1].steps + steps)
        else:
            found.append(Band(cell.smallest, last, kernel, tuple(sorted(cell.multiples)), steps))
    return tuple(found)
