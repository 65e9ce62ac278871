"""Sets of problems as unions of boxes: a box holds, for each axis, a bitmask of the atoms of that axis.

Nothing here knows what an axis means. A list of boxes is a union; the boxes that these functions return are disjoint
when those that they are given are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Box = tuple[int, ...]


def meet(one: Box, other: Box) -> Box | None:
    """What lies in both boxes, or None when nothing does."""
    both = tuple(a & b for a, b in zip(one, other, strict=True))
    return both if all(both) else None


def minus(boxes: Iterable[Box], taken: Box) -> list[Box]:
    """What lies in one of the boxes and not in `taken`."""
    left: list[Box] = []
    for box in boxes:
        if meet(box, taken) is None:
            left.append(box)
        else:
            left += _pieces(box, taken)
    return left


def minus_all(boxes: Iterable[Box], taken: Iterable[Box]) -> list[Box]:
    """What lies in one of the boxes and in none of `taken`."""
    left = list(boxes)
    for box in taken:
        left = minus(left, box)
    return left


def meet_all(boxes: Iterable[Box], others: Sequence[Box]) -> list[Box]:
    """What lies in one of the boxes and in one of the others."""
    return [both for box in boxes for other in others if (both := meet(box, other)) is not None]


def joined(boxes: Iterable[Box]) -> list[Box]:
    """The same set in fewer boxes: those that differ along one axis become one."""
    found = list(dict.fromkeys(boxes))
    axes = len(found[0]) if found else 0
    before = -1
    while before != len(found):
        before = len(found)
        for axis in range(axes):
            groups: dict[Box, int] = {}
            for box in found:
                rest = box[:axis] + box[axis + 1 :]
                groups[rest] = groups.get(rest, 0) | box[axis]
            found = [(*rest[:axis], mask, *rest[axis:]) for rest, mask in groups.items()]
    return found


def _pieces(box: Box, taken: Box) -> Iterable[Box]:
    """A box without `taken`, cut along one axis after the other."""
    inside = list(box)
    for axis, mask in enumerate(taken):
        outside = inside[axis] & ~mask
        if outside:
            yield (*inside[:axis], outside, *inside[axis + 1 :])
        inside[axis] &= mask
