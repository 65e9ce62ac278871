"""Proofs about rows: those that only their place protects, and routes that would keep many copies of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kerneltable.model import CHECKPOINT, Device, Kernel, Route, Step
from kerneltable.select.boxes import Box, meet, meet_all
from kerneltable.select.regions import accepted, simplest_problem, winners
from kerneltable.select.survey import Proof, Survey, named


def prove_places(survey: Survey) -> Iterator[Proof]:
    """KT507: a row takes problems on a chip that it is not made for, so that only its place keeps the chip safe."""
    told: set[tuple[str, str]] = set()
    for route in survey.routes():
        for step in route.steps:
            row = survey.table.kernels[step.kernel]
            if (row.id, route.platform) in told or row.kind not in ("native", "weight_only"):
                continue
            for reason, devices in _unfit(survey, route, row):
                found = [(device, boxes) for device in devices if (boxes := _taken(survey, route, step, device))]
                if found:
                    told.add((row.id, route.platform))
                    yield _unprotected(survey, route, step, reason, found)
                    break


def _unfit(survey: Survey, route: Route, row: Kernel) -> Iterator[tuple[str, list[Device]]]:
    """Why a row should refuse some chips of a platform, and which."""
    platform = survey.table.platforms[route.platform]
    devices = survey.devices(route.platform)
    chips = platform.architectures
    place = row.runs_on.get(route.platform)
    formats = survey.table.schemes[route.scheme].input.formats
    if row.kind == "native" and formats and formats[0].startswith("e4m3") and any(c.fp8 for c in chips.values()):
        yield "has no FP8 units", [device for device in devices if chips[str(device.architecture)].fp8 is None]
    if place is not None and not place.portable and not place.predicates and len(chips) > 1:
        yield "is one of all chips, and the code is not portable", devices


def _taken(survey: Survey, route: Route, step: Step, device: Device) -> list[Box]:
    bare = Step(step.kernel, (), step.mark)
    boxes = accepted(survey.table, device, survey.space(route.scheme), bare)
    return meet_all(boxes, [survey.whole(route.scheme)])


def _unprotected(
    survey: Survey, route: Route, step: Step, reason: str, found: Sequence[tuple[Device, list[Box]]]
) -> Proof:
    device, boxes = found[0]
    won = [w for w in survey.winners(route.scheme, device) if w.kernel == step.kernel]
    names = named([device for device, _ in found])
    kernel = survey.table.kernels[step.kernel]
    if won:
        message, option = f"'{kernel.id}' is chosen on {names}, which {reason}", ""
        problem = simplest_problem(survey.space(route.scheme), won[0].boxes)
    else:
        message, option = f"only its place keeps '{kernel.id}' from {names}, which {reason}", f"--prefer {kernel.id}"
        problem = simplest_problem(survey.space(route.scheme), boxes)
    message += ": its row has no limit that refuses " + ("it" if len(found) == 1 else "them")
    help = f"give kernels.{kernel.id}.runs_on.{route.platform} a lower bound or a feature"
    path = ("kernels", kernel.id, "runs_on", route.platform)
    mark = kernel.runs_on[route.platform].mark
    return Proof("KT507", message, mark, path, help, survey.explain(problem, device, option))


def prove_layouts(survey: Survey) -> Iterator[Proof]:
    """KT508: layers for which the kernels of different m want more packed layouts than `weight_copies` allows."""
    for route in survey.routes():
        groups: dict[tuple[str, ...], list[tuple[Device, Box]]] = {}
        allowed = route.terms.weight_copies
        for device in survey.devices(route.platform):
            layouts, box = _most_layouts(survey, route.scheme, device)
            if len(layouts) > allowed:
                groups.setdefault(layouts, []).append((device, box))
        for layouts, found in groups.items():
            names = named([device for device, _ in found])
            copies = f"{len(layouts)} packed cop{'y' if len(layouts) == 1 else 'ies'}"
            message = f"one layer would want {copies} of its weights on {names}: {', '.join(layouts)}"
            message += f"; weight_copies allows {allowed}, so the steps of later ones are refused"
            help = "let kernels share a layout, join bands of m, or set plans.weight_copies higher where memory is had"
            witness = survey.explain(survey.space(route.scheme).problem(found[0][1]), found[0][0])
            yield Proof("KT508", message, route.mark, ("routes", route.scheme, route.platform), help, witness)


def _most_layouts(survey: Survey, scheme: str, device: Device) -> tuple[tuple[str, ...], Box]:
    """The largest set of packed layouts that one layer meets as its known m changes, and such a layer."""
    space, layouts = survey.space(scheme), {row.layout for row in survey.table.kernels.values()}
    rows = len(space.axes) - 1  # m is the last axis
    known_m = space.axes[rows].full & ~1
    layers: list[tuple[frozenset[str], Box]] = [(frozenset(), survey.whole(scheme))]
    for winner in winners(survey.table, device, space, survey.whole(scheme), copies=len(layouts)):
        layout = CHECKPOINT if winner.kernel is None else survey.table.kernels[winner.kernel].layout
        if layout == CHECKPOINT:
            continue
        for box in winner.boxes:
            if not box[rows] & known_m:
                continue
            wide = (*box[:rows], space.axes[rows].full)  # the layer, at any m
            grown = [(held | {layout}, both) for held, at in layers if layout not in held and (both := meet(at, wide))]
            layers = _unique([*layers, *grown])
    best = max(layers, key=lambda layer: len(layer[0]))
    return tuple(sorted(best[0])), best[1]


def _unique(layers: list[tuple[frozenset[str], Box]]) -> list[tuple[frozenset[str], Box]]:
    """Each once, without those inside another with the same layouts."""
    kept: list[tuple[frozenset[str], Box]] = []
    for held, box in dict.fromkeys(layers):
        if not any(held == other and meet(box, at) == box for other, at in kept):
            kept.append((held, box))
    return kept
