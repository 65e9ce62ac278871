"""Proofs about coverage: problems that only slow kernels take, and chips that were left behind.

The packages assumed are those of a device asked by name: torch, triton and kerneltable.
"""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.model import Device, Route
from kerneltable.select.boxes import joined, meet_all
from kerneltable.select.lint_gaps import Region, nothing
from kerneltable.select.region_text import region_text
from kerneltable.select.regions import simplest_problem
from kerneltable.select.survey import Proof, Survey, named

FAST = ("native", "weight_only")


def prove_cover(survey: Survey) -> Iterator[Proof]:
    """KT505 and KT506 for each route: one finding for all chips that lack the same problems."""
    for route in survey.routes():
        if route.require is None:
            yield from _prove_slow(survey, route)
            yield from _prove_behind(survey, route, dict(_left_behind(survey, route)))


def _prove_slow(survey: Survey, route: Route) -> Iterator[Proof]:
    space, whole = survey.space(route.scheme), survey.whole(route.scheme)
    groups: dict[Region, list[Device]] = {}
    for device in survey.devices(route.platform, future=True):
        region = slow(survey, route.scheme, device)
        if region:
            groups.setdefault(region, []).append(device)
    for region, devices in groups.items():
        message = f"only slow kernels take this on {named(devices)}: {region_text(space, region, whole)}"
        help = "nothing to do when that is meant; a portable row with wider limits would serve it"
        witness = survey.explain(simplest_problem(space, region), devices[0])
        yield Proof("KT505", message, route.mark, ("routes", route.scheme, route.platform), help, witness)


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
