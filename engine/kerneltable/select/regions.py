"""Which kernel wins where: exact regions of problems on one device, by set algebra instead of sampling.

What a device refuses is asked of the selection itself; what is left are boxes of problems, see `space`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kerneltable.model import Denial, Device, Problem, Route, Step, Table
from kerneltable.select.boxes import Box, joined, meet, meet_all, minus, minus_all
from kerneltable.select.budget import Budget, any_m, for_unknown_m, with_own_scales
from kerneltable.select.predicates import misses
from kerneltable.select.select import device_refusals, facts_of, holds, ordered
from kerneltable.select.space import Space, about_problems, domain, simplest
from kerneltable.select.terms import demand_refusals


@dataclass(frozen=True, slots=True)
class Winner:
    """A step of a route and the problems that it wins; step is None for the problems that nothing takes."""

    step: Step | None
    boxes: tuple[Box, ...]

    @property
    def kernel(self) -> str | None:
        """The id of the kernel, None when nothing takes these problems."""
        return None if self.step is None else self.step.kernel


def winners(
    table: Table, device: Device, space: Space, within: Box | None = None, *, copies: int | None = None
) -> tuple[Winner, ...]:
    """Every problem of the space that the table can be asked, by the step that wins it, in the order of the route.

    within    only the problems of this box; None is all of them
    copies    packed copies of the weights that a layer may keep; None is what the route says
    returns   disjoint regions that together are the whole; a step that wins nothing is left out
    """
    known = domain(space, table)
    route = table.routes.get((space.scheme, device.platform))
    steps = tuple(ordered(route)) if route else ()
    allowed = copies if copies is not None or route is None else route.terms.weight_copies
    budget = Budget.of(table, space, steps, allowed) if allowed is not None else None
    if known is not None and within is not None:  # a budget is one of all m: it looks at each of them
        known = meet(known, within if budget is None else any_m(space, within))
    left = [] if known is None else [known]
    found = []
    for step in steps:
        taken = accepted(table, device, space, step, route=route)
        taken = taken if budget is None else budget.allows(table.kernels[step.kernel].layout, taken, left)
        won = joined(meet_all(left, taken))
        if won:
            found.append(Winner(step, tuple(won)))
            left = joined(minus_all(left, taken))
            if budget is not None:
                budget.keep(table.kernels[step.kernel].layout, won)
    every = (*found, Winner(None, tuple(left))) if left else tuple(found)
    return every if budget is None or within is None else _inside(every, within)


def _inside(every: Iterable[Winner], within: Box) -> tuple[Winner, ...]:
    cut = (Winner(one.step, tuple(meet_all(one.boxes, [within]))) for one in every)
    return tuple(one for one in cut if one.boxes)


def accepted(table: Table, device: Device, space: Space, step: Step, *, route: Route | None = None) -> list[Box]:
    """The problems that a step takes on a device whatever stands before it, as disjoint boxes.

    route   with it, what `require` and the demands of its plans keep away is left out too
    """
    required = route.require if route else None
    if required is not None and step.kernel != required.kernel:
        return []
    if demand_refusals(table.kernels[step.kernel], route):
        return []
    one_kernel = route is not None and route.terms.one_kernel is not None
    boxes = claimed(table, device, space, step)
    boxes = with_own_scales(space, for_unknown_m(space, boxes)) if one_kernel else boxes
    for denial in table.denials:
        if boxes and denial.kernel == step.kernel:
            found = denied(table, device, space, denial)
            for box in [] if found is None else for_unknown_m(space, [found]) if one_kernel else [found]:
                boxes = minus(boxes, box)
    return boxes


def claimed(table: Table, device: Device, space: Space, step: Step) -> list[Box]:
    """The problems that row and step take on a device when no denial and no other step counts: one box or none."""
    facts = facts_of(table, device)
    kernel = table.kernels[step.kernel]
    about_device = [p for p in step.when if not about_problems(p)]
    if device_refusals(table, kernel, device) or misses(kernel.id, about_device, facts):
        return []
    box = space.box((*kernel.accepts, *(p for p in step.when if about_problems(p))))
    return [] if box is None else [box]


def denied(table: Table, device: Device, space: Space, denial: Denial) -> Box | None:
    """The problems that a denial takes away on a device, from layers without a name; None when it takes none."""
    if denial.models or denial.platform not in (None, device.platform):  # a region speaks of no model
        return None
    facts = facts_of(table, device)
    if not all(holds(denial.kernel, p, facts) for p in denial.predicates if not about_problems(p)):
        return None
    return space.box((p for p in denial.predicates if about_problems(p)), denial=True)


def simplest_problem(space: Space, boxes: Iterable[Box]) -> Problem:
    """The problem to show for a region: the first details of the scheme, then small sizes, m unknown if it may be."""
    return space.problem(min(boxes, key=lambda box: _order(space, box)))


def _order(space: Space, box: Box) -> tuple[int, ...]:
    places = [simplest(axis, mask) for axis, mask in zip(space.axes, box, strict=True)]
    details = [place for axis, place in zip(space.axes, places, strict=True) if not axis.cells]
    sizes = [axis.atoms[place][axis.name] for axis, place in zip(space.axes, places, strict=True) if axis.cells]
    return (sum(1 for place in details if place), *details, *(-1 if size is None else size for size in sizes))
