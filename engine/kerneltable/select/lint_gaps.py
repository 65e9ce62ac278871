"""Proofs about problems that nothing takes, each laid to what left them without a kernel.

What an override did (require, demand, disable) is taken back one after the other, until something takes the problem:
that one is the cause. What is left then is the route's own gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kerneltable.model import Demand, Denial, Device, Mark, Route, Step, Table
from kerneltable.select.boxes import Box, joined, meet_all, minus_all
from kerneltable.select.region_text import region_text
from kerneltable.select.regions import simplest_problem
from kerneltable.select.survey import Path, Proof, Survey, named

Region = tuple[Box, ...]
MOST_REGIONS = 3
"""How many regions the message about one cause spells out."""


@dataclass(frozen=True, slots=True)
class _Cause:
    """What left problems without a kernel: its place, what it does, and the next step.

    own   whether it is the route itself, of which each region is a finding
    """

    mark: Mark
    path: Path
    what: str
    help: str
    length: int = 1
    own: bool = False


@dataclass(frozen=True, slots=True)
class _Gap:
    """A region of one scheme that nothing takes on some devices."""

    route: Route
    region: Region
    devices: list[Device]


def prove_gaps(survey: Survey) -> Iterator[Proof]:
    """KT504: one finding for each override's line that leaves problems without a kernel, and for each gap of a route.

    The packages of a required kernel are taken to be installed where it is required: the deployment will have them.
    """
    found: dict[_Cause, dict[tuple[Path, Region], _Gap]] = {}
    for route in survey.routes():
        causes = [(cause, replace(survey, table=table, won={})) for cause, table in _taken_back(survey.table, route)]
        for known in survey.devices(route.platform, future=True):
            device = known if route.require is None else replace(known, assume_all=True)
            for cause, region in _gaps(survey, route, device, causes):
                groups = found.setdefault(cause, {})
                groups.setdefault((_path(route), region), _Gap(route, region, [])).devices.append(device)
    for cause, groups in found.items():
        gaps = list(groups.values())
        for part in [[gap] for gap in gaps] if cause.own else [gaps]:
            yield _proof(survey, cause, part)


def nothing(survey: Survey, scheme: str, device: Device) -> Region:
    """The problems that nothing takes on a device."""
    return tuple(box for winner in survey.winners(scheme, device) if winner.kernel is None for box in winner.boxes)


def _gaps(
    survey: Survey, route: Route, device: Device, causes: Sequence[tuple[_Cause, Survey]]
) -> Iterator[tuple[_Cause, Region]]:
    """What nothing takes on a device, in parts with one cause each."""
    left = nothing(survey, route.scheme, device)
    for cause, without in causes if left else ():
        still = nothing(without, route.scheme, device)
        caused = joined(minus_all(left, still))
        if caused:
            yield cause, tuple(caused)
            left = tuple(meet_all(left, still))
    if left:
        help = "end the route with `reference`, or widen a row"
        yield _Cause(route.mark, _path(route), "nothing takes this", help, own=True), left


def _taken_back(table: Table, route: Route) -> Iterator[tuple[_Cause, Table]]:
    """What overrides did to a route, one after the other, each with the table without it and all before it.

    Of two disabled kernels the one further back in the route is first: a last resort is missed wherever it is off.
    """
    if route.require is not None:
        chosen = route.require
        what = f"'{chosen.kernel}' is required here, and nothing else may take what it refuses"
        help = "write `prefer` if others may; if this is meant, a baseline lets it pass (`check --baseline`)"
        cause = _Cause(chosen.mark, (*_path(route), "require"), what, help, len(chosen.kernel))
        route = replace(route, require=None)
        table = _with_route(table, route)
        yield cause, table
    for demand in route.terms.demands:
        rest = tuple(other for other in route.terms.demands if other is not demand)
        route = replace(route, terms=replace(route.terms, demands=rest))
        table = _with_route(table, route)
        yield _demanded(table, route, demand), table
    for place, denial in _disabled(table, route):
        table = replace(table, denials=tuple(d for d in table.denials if d is not denial), answers={})
        what = f"'{denial.kernel}' is switched off here, and nothing else takes this"
        help = "leave it on, or limit the row with `platform` and `scheme` to where other kernels take all"
        yield _Cause(denial.mark, ("disable", place, "kernel"), what, help, len(denial.kernel)), table
    for gone in sorted(route.removed, key=lambda one: table.kernels[one.kernel].kind != "reference"):
        route = replace(route, steps=(*route.steps, Step(gone.kernel, (), gone.mark)))
        table = _with_route(table, route)
        what = f"'{gone.kernel}' is taken out here, and nothing else takes this"
        yield _Cause(gone.mark, (*_path(route), "order"), what, f"leave '{gone.kernel}' in, or widen a row"), table


def _with_route(table: Table, route: Route) -> Table:
    return replace(table, routes={**table.routes, (route.scheme, route.platform): route}, answers={})


def _demanded(table: Table, route: Route, demand: Demand) -> _Cause:
    whole: Path = ("plans", demand.name)
    path = whole if table.marks.get(whole) == demand.mark else (*_path(route), *whole)
    what = f"`{demand.name}` is demanded here, and no kernel that keeps it takes this"
    help = "demand it where kernels promise it (routes.SCHEME.PLATFORM.plans), or add a row that does"
    return _Cause(demand.mark, path, what, help)


def _disabled(table: Table, route: Route) -> list[tuple[int, Denial]]:
    """The `disable` rows about kernels of a route, each with its place among all of them."""
    order = [step.kernel for step in route.steps]
    rows = enumerate(denial for denial in table.denials if denial.source == "disable")
    mine = [(place, row) for place, row in rows if row.kernel in order and row.platform in (None, route.platform)]
    return sorted(mine, key=lambda pair: -order.index(pair[1].kernel))


def _proof(survey: Survey, cause: _Cause, gaps: Sequence[_Gap]) -> Proof:
    first = gaps[0]
    if cause.own:
        message = f"{cause.what} on {_where(survey, first)}"
    else:
        shown = [f"{gap.route.scheme} on {_where(survey, gap)}" for gap in gaps[:MOST_REGIONS]]
        more = len(gaps) - len(shown)
        message = f"{cause.what}: {' / '.join(shown)}" + (f" / and {more} more, see `kerneltable diff`" if more else "")
    problem = simplest_problem(survey.space(first.route.scheme), first.region)
    option = "--with all" if first.devices[0].assume_all else ""
    witness = survey.explain(problem, first.devices[0], option)
    return Proof("KT504", message, cause.mark, cause.path, cause.help, witness, cause.length)


def _where(survey: Survey, gap: _Gap) -> str:
    scheme = gap.route.scheme
    return f"{named(gap.devices)}: {region_text(survey.space(scheme), gap.region, survey.whole(scheme))}"


def _path(route: Route) -> Path:
    return ("routes", route.scheme, route.platform)
