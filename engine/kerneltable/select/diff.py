"""What changes between two tables: the exact regions of problems that another kernel wins, device by device.

First for layers without a name, then for each kind of models that denials of the tables tell apart: what changes for
these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kerneltable.model import Device, Mark, Problem, Table
from kerneltable.select.boxes import Box, joined, meet_all, minus, minus_all
from kerneltable.select.devices import device
from kerneltable.select.fleet import architectures, future_chips
from kerneltable.select.model_kinds import ModelKind, kinds_of_models, table_for
from kerneltable.select.regions import simplest_problem, winners
from kerneltable.select.space import Space, domain, space_of

FAST = ("native", "weight_only")
LOUDNESS = ("lost", "slower", "kind", "numerics", "layout", "kernel")
"""The kinds of change, the loudest first."""


@dataclass(frozen=True, slots=True)
class Side:
    """Who computes a region in one table: a row, or nothing; what is not compared stands in `where`.

    kernel   None when nothing takes these problems
    known    False when the table has no such scheme, or its scheme no such detail
    """

    kernel: str | None = None
    kind: str = ""
    layout: str = ""
    accumulator: str = ""
    deterministic: bool = False
    batch_invariant: bool = False
    known: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """A region that changes in the same way on some devices.

    boxes     disjoint, in space
    where     the step that wins in the second table, else its route, else the step of the first table
    problem   the simplest one of the region
    models    patterns of the models that this is about; none: layers without a name, and all others
    """

    scheme: str
    devices: tuple[Device, ...]
    before: Side
    after: Side
    space: Space
    boxes: tuple[Box, ...]
    problem: Problem
    where: Mark
    models: tuple[str, ...] = ()

    @property
    def loudness(self) -> str:
        """Which of LOUDNESS this is: the worst that the change does."""
        before, after = self.before, self.after
        if after.kernel is None:
            return "lost"
        if before.kind in FAST and after.kind not in FAST:
            return "slower"
        if before.kind != after.kind:
            return "kind"
        if _numerics(before) != _numerics(after):
            return "numerics"
        return "layout" if before.layout != after.layout else "kernel"

    def differences(self) -> dict[str, tuple[object, object]]:
        """What differs between the two rows: name -> before and after."""
        names = ("kernel", "kind", "accumulator", "deterministic", "batch_invariant", "layout")
        pairs = {name: (getattr(self.before, name), getattr(self.after, name)) for name in names}
        if self.before.kernel is None or self.after.kernel is None:
            return {"kernel": pairs["kernel"]}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def diff(one: Table, other: Table, devices: Sequence[tuple[Device, Device]] | None = None) -> tuple[Change, ...]:
    """Every change from one table to the other, the loudest first.

    devices   each device as the one and as the other table knows it; None is every architecture of both tables, each
              name that stands for another chip now, and an unknown chip of each platform that counts capabilities
    returns   regions of problems with n, k and m of at least 1 (or m unknown); empty when every decision is the same
    """
    pairs = every_device(one, other) if devices is None else devices
    sides = [
        (None, one, other),
        *((kind, table_for(one, kind), table_for(other, kind)) for kind in kinds_of_models(one, other)),
    ]
    found: list[Change] = []
    for scheme in dict.fromkeys((*one.schemes, *other.schemes)):
        found += _of_scheme(space_of(scheme, one, other), sides, pairs)
    return tuple(sorted(found, key=lambda change: LOUDNESS.index(change.loudness)))


def every_device(one: Table, other: Table) -> list[tuple[Device, Device]]:
    """Every architecture of both tables, each name of another chip now, and the unknown chips.

    What a table does not know is unknown to it.
    """
    pairs = []
    for sides in ((architectures(one), architectures(other)), (future_chips(one), future_chips(other))):
        here, there = ({(d.platform, d.architecture or d.name): d for d in side} for side in sides)
        for key in dict.fromkeys((*here, *there)):
            pairs.append((here.get(key) or there[key], there.get(key) or here[key]))
    return [*pairs, *_moved(one, other)]


def _moved(one: Table, other: Table) -> Iterator[tuple[Device, Device]]:
    """The device names of both tables that stand for one architecture in the one and for another in the other."""
    for platform in one.platforms.values():
        names = other.platforms[platform.name].devices if platform.name in other.platforms else {}
        for name, chip in platform.devices.items():
            if names.get(name, chip) != chip:
                full = f"{platform.name}:{name}"
                yield device(full, one), device(full, other)


def _of_scheme(
    space: Space, sides: Sequence[tuple[ModelKind | None, Table, Table]], pairs: Sequence[tuple[Device, Device]]
) -> Iterator[Change]:
    plain: dict[tuple[int, Side, Side], list[Box]] = {}
    for kind, one, other in sides:
        groups: dict[tuple[Side, Side, tuple[Box, ...]], list[tuple[Device, Mark]]] = {}
        for place, (mine, theirs) in enumerate(pairs):
            for (before, after), (boxes, mark) in _changed(space, (one, mine), (other, theirs)).items():
                known = plain.setdefault((place, before, after), boxes if kind is None else [])
                found = boxes if kind is None else minus_all(boxes, known)
                if found:
                    groups.setdefault((before, after, tuple(sorted(joined(found)))), []).append((theirs, mark))
        for (before, after, region), where in groups.items():
            problem = replace(simplest_problem(space, region), model=None if kind is None else kind.name)
            devices, models = tuple(device for device, _ in where), () if kind is None else kind.patterns
            yield Change(space.scheme, devices, before, after, space, region, problem, where[0][1], models)


def _changed(
    space: Space, one: tuple[Table, Device], other: tuple[Table, Device]
) -> dict[tuple[Side, Side], tuple[list[Box], Mark]]:
    """What changes on one device, by who computes it before and after, with the place to show."""
    after = _sides(*other, space)
    changed: dict[tuple[Side, Side], tuple[list[Box], Mark]] = {}
    for side, mark, boxes in _sides(*one, space):
        for later, place, won in after:
            both = meet_all(boxes, won) if side != later and side.known | later.known else []
            if both:
                changed.setdefault((side, later), ([], place or mark or Mark("", 1, 1)))[0].extend(both)
    return changed


def _sides(table: Table, device: Device, space: Space) -> list[tuple[Side, Mark | None, list[Box]]]:
    """Every problem with sizes of at least 1, by who computes it."""
    ordinary = space.ordinary
    known = domain(space, table)
    outside = [ordinary] if known is None else minus([ordinary], known)
    found: list[tuple[Side, Mark | None, list[Box]]] = [(Side(known=False), None, outside)] if outside else []
    route = table.routes.get((space.scheme, device.platform))
    for winner in winners(table, device, space, ordinary):
        mark = winner.step.mark if winner.step else route.mark if route else None
        found.append((_side(table, winner.kernel), mark, list(winner.boxes)))
    return found


def _side(table: Table, kernel: str | None) -> Side:
    if kernel is None:
        return Side()
    row = table.kernels[kernel]
    rounding = row.numerics
    return Side(kernel, row.kind, row.layout, rounding.accumulator, rounding.deterministic, rounding.batch_invariant)


def _numerics(side: Side) -> tuple[str, bool, bool]:
    return side.accumulator, side.deterministic, side.batch_invariant
