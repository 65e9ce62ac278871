"""Proofs about coverage: problems that nothing takes, that only slow kernels take, and chips that were left behind.

The packages assumed are those of a device asked by name: torch, triton and kerneltable.
"""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.model import Device, Route
from kerneltable.select.boxes import Box, joined, meet_all
from kerneltable.select.region_text import region_text
from kerneltable.select.regions import simplest_problem
from kerneltable.select.survey import Proof, Survey, named

FAST = ("native", "weight_only")
Region = tuple[Box, ...]


def prove_cover(survey: Survey) -> Iterator[Proof]:
    """KT504, KT505 and KT506 for each route: one finding for all chips that lack the same problems."""
    for route in survey.routes():
        if route.require is None:
            behind = dict(_left_behind(survey, route))
            yield from _prove_gaps(survey, route)
            yield from _prove_behind(survey, route, behind)


def _prove_gaps(survey: Survey, route: Route) -> Iterator[Proof]:
    space, whole = survey.space(route.scheme), survey.whole(route.scheme)
    for fast in (False, True):
        groups: dict[Region, list[Device]] = {}
        for device in survey.devices(route.platform, future=True):
            region = slow(survey, route.scheme, device) if fast else nothing(survey, route.scheme, device)
            if region:
                groups.setdefault(region, []).append(device)
        for region, devices in groups.items():
            what = region_text(space, region, whole)
            names = named(devices)
            witness = survey.explain(simplest_problem(space, region), devices[0])
            if fast:
                message = f"only slow kernels take this on {names}: {what}"
                help = "nothing to do when that is meant; a portable row with wider limits would serve it"
            else:
                message = f"nothing takes this on {names}: {what}"
                help = "end the route with `reference`, or widen a row"
            path = ("routes", route.scheme, route.platform)
            yield Proof("KT505" if fast else "KT504", message, route.mark, path, help, witness)


def nothing(survey: Survey, scheme: str, device: Device) -> Region:
    """The problems that nothing takes on a device."""
    return tuple(box for winner in survey.winners(scheme, device) if winner.kernel is None for box in winner.boxes)


def slow(survey: Survey, scheme: str, device: Device) -> Region:
    """The problems that a kernel of kind emulation or reference wins on a device."""
    kernels = survey.table.kernels
    won = [w for w in survey.winners(scheme, device) if w.kernel is not None and kernels[w.kernel].kind not in FAST]
    return tuple(joined(box for winner in won for box in winner.boxes))


def fast_of(survey: Survey, scheme: str, device: Device) -> Region:
    """The problems that a native or weight_only kernel wins on a device."""
    kernels = survey.table.kernels
    won = [w for w in survey.winners(scheme, device) if w.kernel is not None and kernels[w.kernel].kind in FAST]
    return tuple(joined(box for winner in won for box in winner.boxes))


def _left_behind(survey: Survey, route: Route) -> Iterator[tuple[Device, tuple[Device, Region]]]:
    """Chips whose older or lesser sibling has a fast kernel for problems where they have none."""
    devices = survey.devices(route.platform)
    for device in devices:
        lost = (*slow(survey, route.scheme, device), *nothing(survey, route.scheme, device))
        for other in devices if lost else ():
            if other is not device and _follows(survey, device, other):
                region = joined(meet_all(lost, fast_of(survey, route.scheme, other)))
                if region:
                    yield device, (other, tuple(region))
                    break


def _prove_behind(survey: Survey, route: Route, behind: dict[Device, tuple[Device, Region]]) -> Iterator[Proof]:
    space, whole = survey.space(route.scheme), survey.whole(route.scheme)
    groups: dict[tuple[Device, Region], list[Device]] = {}
    for device, found in behind.items():
        groups.setdefault(found, []).append(device)
    for (other, region), devices in groups.items():
        what = region_text(space, region, whole)
        message = f"{named(devices)} left behind: {other.name} has a fast kernel for this and they have none: {what}"
        problem = simplest_problem(space, region)
        kernel = next(w.kernel for w in survey.winners(route.scheme, other) if meet_all(w.boxes, region))
        help = f"see whether '{kernel}' runs there too, and widen its `runs_on`"
        path = ("routes", route.scheme, route.platform)
        yield Proof("KT506", message, route.mark, path, help, survey.explain(problem, devices[0]))


def _follows(survey: Survey, device: Device, other: Device) -> bool:
    """Whether a chip has every feature of another one and, where capabilities count, comes after it."""
    chips = survey.table.platforms[device.platform].architectures
    mine, theirs = chips[str(device.architecture)], chips[str(other.architecture)]
    if mine.capability is not None and theirs.capability is not None and mine.capability < theirs.capability:
        return False
    return mine.features >= theirs.features and (theirs.fp8 is None or mine.fp8 == theirs.fp8)
