"""What a row asks for: four closed forms, so that set algebra on them is exact."""

from __future__ import annotations

from dataclasses import dataclass

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
