"""What a row asks for: four closed forms, so that set algebra on them is exact."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from kerneltable.model.marks import Mark

Capability = tuple[int, int]
Value = str | int | bool


@dataclass(frozen=True, slots=True)
class OneOf:
    """The fact named by key must be one of values, e.g. accepts.input: [bf16, f16]."""

    key: str
    values: tuple[Value, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Range:
    """minimum <= fact <= maximum, both ends included; an int, or a capability as (major, minor).

    One leaf of the table makes one Range, so one of the two ends is None.
    """

    key: str
    minimum: int | Capability | None
    maximum: int | Capability | None
    mark: Mark


@dataclass(frozen=True, slots=True)
class MultipleOf:
    """The fact must be a multiple of divisor (at least 1); 0 is a multiple of everything."""

    key: str
    divisor: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Needs:
    """The device must have name: a feature, a package (in a version range) or a registered op."""

    key: str
    name: str
    version: str | None
    mark: Mark


Predicate = OneOf | Range | MultipleOf | Needs
LARGEST_SIZE = 2**31 - 1
"""The largest m, n or k."""
MOST_MULTIPLES = 256
"""The sets of sizes that the multiples of one scheme may tell apart; each set is looked at. The shipped table has 5."""


def common_multiples(found: frozenset[int], divisor: int) -> frozenset[int]:
    """The least common multiples of every set of divisors, with one divisor more; those above any size are left out."""
    return found | {product for known in found if (product := lcm(known, divisor)) <= LARGEST_SIZE}
