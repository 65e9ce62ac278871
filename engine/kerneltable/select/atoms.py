"""The atoms of the sizes n, k and m: sets of whole numbers that no predicate in play tells apart.

A predicate on a size is a range or a multiple. So all numbers of one interval between the ends of the ranges, which
are multiples of the same divisors, are alike: one of them stands for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import lcm

from kerneltable.model import MultipleOf, Predicate, Range
from kerneltable.model.predicates import LARGEST_SIZE, common_multiples


@dataclass(frozen=True, slots=True)
class Cell:
    """The numbers from low to high that are multiples of `multiples` and of no other divisor in play.

    smallest   the least of them; a Cell is never empty
    """

    low: int
    high: int
    multiples: frozenset[int]
    smallest: int


def divisors_of(predicates: Iterable[Predicate]) -> tuple[int, ...]:
    """The divisors that the predicates ask for, without 1."""
    return tuple(sorted({p.divisor for p in predicates if isinstance(p, MultipleOf) and p.divisor > 1}))


def cells_of(predicates: Sequence[Predicate]) -> tuple[Cell, ...]:
    """Every cell of 0 to LARGEST_SIZE that predicates on one size make; 0 and 1 always begin a cell."""
    starts = {0, 1}
    for predicate in predicates:
        if isinstance(predicate, Range):
            low, high = predicate.minimum, predicate.maximum
            starts |= {low} if isinstance(low, int) else set()
            starts |= {high + 1} if isinstance(high, int) else set()
    lows = sorted(start for start in starts if 0 <= start <= LARGEST_SIZE)
    highs = [*(low - 1 for low in lows[1:]), LARGEST_SIZE]
    divisors = divisors_of(predicates)
    products = _products(divisors)
    cells = []
    for low, high in zip(lows, highs, strict=True):
        for product in products:
            multiples = frozenset(d for d in divisors if product % d == 0)
            smallest = _smallest(low, high, product, [d for d in divisors if d not in multiples])
            if smallest is not None:
                cells.append(Cell(low, high, multiples, smallest))
    return tuple(cells)


def _products(divisors: Sequence[int]) -> list[int]:
    """The least common multiples of every set of divisors; those above the largest size hold 0 alone: one is enough."""
    found = frozenset({1})
    for divisor in divisors:
        found = common_multiples(found, divisor)
    return sorted(found | {lcm(*divisors)})


def _smallest(low: int, high: int, product: int, others: Sequence[int]) -> int | None:
    """The least number from low to high that is a multiple of product and of none of the others, or None.

    No other divides product, so the search is short: among j consecutive numbers, j growing slowly with the count of
    others (Jacobsthal's function), one is a multiple of none.
    """
    number = -(-low // product) * product
    while number <= high:
        if all(number % other for other in others):
            return number
        number += product
    return None
