"""Copies of the weights as set algebra: which layers may still pack weights in one layout more.

A layer is a problem at any m; m is the last axis of a space. The same rule for one layer is in `terms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kerneltable.model import CHECKPOINT, Step, Table
from kerneltable.select.boxes import Box, joined, meet_all, minus_all
from kerneltable.select.space import Space
from kerneltable.select.terms import packed_layouts, shares_scale


@dataclass(slots=True)
class Budget:
    """Disjoint regions of layers by the packed layouts that they have copies in so far; their boxes hold every m."""

    copies: int
    full_m: int
    real_m: int
    held: dict[frozenset[str], list[Box]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table, space: Space, steps: Sequence[Step], copies: int) -> Budget | None:
        """A budget with nothing kept yet; None when the steps cannot exceed it."""
        if len(packed_layouts(table, steps)) <= copies:
            return None
        return cls(copies, space.full[-1], space.ordinary[-1], {frozenset(): [space.full]})

    def allows(self, layout: str, boxes: Sequence[Box], left: Sequence[Box]) -> list[Box]:
        """The part of the boxes whose layers have a copy in this layout, need none, or may make one more.

        left   what no step before has won: where a layer would win no m of at least 1 and no unknown one, it needs none
        """
        if layout == CHECKPOINT:
            return list(boxes)
        open_to = [box for kept, at in self.held.items() if layout in kept or len(kept) < self.copies for box in at]
        wanted = [(*box[:-1], self.full_m) for box in meet_all(boxes, left) if box[-1] & self.real_m]
        return [*meet_all(boxes, open_to), *minus_all(boxes, [*open_to, *wanted])]

    def keep(self, layout: str, won: Iterable[Box]) -> None:
        """Note a copy for the layers that have an m (of at least 1, or unknown) in these boxes."""
        if layout == CHECKPOINT:
            return
        layers: list[Box] = []
        for box in joined((*box[:-1], self.full_m) for box in won if box[-1] & self.real_m):
            layers += minus_all([box], layers)
        later: dict[frozenset[str], list[Box]] = {}
        for kept, at in self.held.items():
            grown = meet_all(at, layers) if layout not in kept else []
            rest = minus_all(at, grown) if grown else at
            for name, boxes in ((kept, rest), (kept | {layout}, grown)):
                if boxes:
                    later.setdefault(name, []).extend(boxes)
        self.held = {kept: joined(boxes) for kept, boxes in later.items()}


def any_m(space: Space, box: Box) -> Box:
    """The same layers at every m."""
    return (*box[:-1], space.full[-1])


def for_unknown_m(space: Space, boxes: Iterable[Box]) -> list[Box]:
    """What takes an unknown m, at every m; the rest goes: an unknown m is the first atom of its axis."""
    return [any_m(space, box) for box in boxes if box[-1] & 1]


def with_own_scales(space: Space, boxes: Iterable[Box]) -> list[Box]:
    """Without the problems in which all rows of the input share one dynamic scale."""
    place = next(place for place, axis in enumerate(space.axes) if axis.name == "taken")
    shared = sum(1 << atom for atom, facts in enumerate(space.axes[place].atoms) if shares_scale(facts))
    cut = ((*box[:place], box[place] & ~shared, *box[place + 1 :]) for box in boxes)
    return [box for box in cut if box[place]]
