"""Regions as text and as JSON-able values, and the `explain` command that shows one of their problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import lcm
from shlex import quote
from typing import Any

from kerneltable.model import Problem, Table
from kerneltable.model.predicates import LARGEST_SIZE
from kerneltable.select.boxes import Box
from kerneltable.select.predicates import UNASKED
from kerneltable.select.problems import block_text, complete
from kerneltable.select.space import Axis, Space, domain

MOST_PARTS = 4
"""How many alternatives of one size, or boxes of one region, a line of text shows."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from low to high, both included; of these the multiples of one number and of none of others.

    multiple_of   1 when it does not matter
    """

    low: int
    high: int
    multiple_of: int
    not_multiple_of: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The span with what bounds it; no "max" when there is none."""
        said: dict[str, Any] = {"min": self.low}
        if self.high < LARGEST_SIZE:
            said["max"] = self.high
        if self.multiple_of > 1:
            said["multiple_of"] = self.multiple_of
        if self.not_multiple_of:
            said["not_multiple_of"] = list(self.not_multiple_of)
        return said

    def text(self, name: str) -> str:
        """The span in words: "n >= 64 multiple of 16", "k not a multiple of 32"."""
        if self.low == self.high:
            return f"{name} = {self.low}"
        parts = [f"multiple of {self.multiple_of}"] if self.multiple_of > 1 else []
        parts += [f"not of {number}" for number in self.not_multiple_of]
        if parts and self.multiple_of == 1:
            parts[0] = f"not a multiple {parts[0].removeprefix('not ')}"
        if self.high < LARGEST_SIZE:
            bounds = f"{name} {self.low} to {self.high}"
        else:
            bounds = name if parts and self.low <= max(1, self.multiple_of) else f"{name} >= {self.low}"
        return f"{bounds} {', '.join(parts)}" if parts else bounds


def spans(axis: Axis, mask: int, within: int) -> list[Span]:
    """The numbers of a mask in few spans, ascending; what lies outside of `within` does not matter. No unknown m."""
    every = [(cell, bool(mask >> place & 1)) for place, cell in enumerate(axis.cells) if within >> place & 1]
    lows = sorted({(cell.low, cell.high) for cell, _ in every if cell is not None})
    runs: list[tuple[int, int, set[frozenset[int]], set[frozenset[int]]]] = []
    for low, high in lows:
        here = [(cell.multiples, taken) for cell, taken in every if cell and (cell.low, cell.high) == (low, high)]
        inside = {multiples for multiples, taken in here if taken}
        outside = {multiples for multiples, taken in here if not taken}
        if runs and not (runs[-1][2] & outside) and not (runs[-1][3] & inside):
            before = runs.pop()
            runs.append((before[0], high, before[2] | inside, before[3] | outside))
        else:
            runs.append((low, high, inside, outside))
    return [span for low, high, inside, outside in runs for span in _spans(low, high, inside, outside)]


def _spans(low: int, high: int, inside: set[frozenset[int]], outside: set[frozenset[int]]) -> Iterator[Span]:
    """One interval: few pairs of "multiple of" and "not of" that give exactly the signatures inside."""
    left = set(inside)
    while left:
        least = min(left, key=lambda signature: (len(signature), sorted(signature)))
        over = {signature for signature in inside | outside if least <= signature}
        barred = sorted({d for signature in over & outside for d in signature - least})
        while len(barred) > 1:  # as few as still keep everything outside out
            fewer = next((barred[:i] + barred[i + 1 :] for i in range(len(barred))
                          if all(set(barred[:i] + barred[i + 1 :]) & s for s in over & outside)), None)  # fmt: skip
            if fewer is None:
                break
            barred = fewer
        covered = {signature for signature in over if not set(barred) & signature}
        multiple = lcm(*least)
        first = next(n for n in count(-(-low // multiple) * multiple, multiple) if all(n % d for d in barred))
        last = high // multiple * multiple
        while high < LARGEST_SIZE and not all(last % d for d in barred):
            last -= multiple
        yield Span(first, high if high == LARGEST_SIZE else last, multiple, tuple(barred))
        left -= covered


def details(axis: Axis, mask: int) -> list[str]:
    """The values of a mask on an axis that is no size: "block 128x128", "token dynamic", "bf16"."""
    return [_value(axis, place) for place in range(len(axis.atoms)) if mask >> place & 1]


def box_json(space: Space, box: Box, within: Box) -> dict[str, Any]:
    """What a box asks of a problem, axis by axis; an axis that is as wide as `within` is left out."""
    said: dict[str, Any] = {}
    for axis, mask, all_of_it in zip(space.axes, box, within, strict=True):
        if mask == all_of_it:
            continue
        if axis.cells:
            said[axis.name] = [span.as_json() for span in spans(axis, mask, all_of_it)]
            if axis.cells[0] is None:
                said["m_unknown"] = bool(mask & 1)
        else:
            said[_named(axis)] = details(axis, mask)
    return said


def box_text(space: Space, box: Box, within: Box) -> str:
    """The same in one line; "every problem" when nothing is asked."""
    parts = []
    for axis, mask, all_of_it in zip(space.axes, box, within, strict=True):
        if mask == all_of_it:
            continue
        if axis.cells:
            found = _size_text(axis, mask, all_of_it)
        else:
            found = f"{_named(axis).replace('_', ' ')} {_either(details(axis, mask))}"
        parts.append(found)
    return "; ".join(parts) or "every problem"


def region_text(space: Space, boxes: Sequence[Box], within: Box) -> str:
    """A union of boxes in one line, cut after MOST_PARTS."""
    shown = [box_text(space, box, within) for box in boxes[:MOST_PARTS]]
    more = len(boxes) - len(shown)
    return " | ".join(shown) + (f" | and {more} more" if more else "")


def whole(space: Space, table: Table) -> Box:
    """The ordinary problems that a table can be asked: what a region is described against."""
    known = domain(space, table)
    return space.ordinary if known is None else tuple(a & b for a, b in zip(known, space.ordinary, strict=True))


def explain_command(table: Table, problem: Problem, device: str, more: str = "") -> str:
    """The command that shows how this problem is decided; what the scheme takes by itself is not said.

    more   further options, such as "-f deploy.yaml"
    """
    plain = complete(table.schemes[problem.scheme], Problem(problem.scheme, n=problem.n, k=problem.k))
    words = [f"kerneltable explain {problem.scheme} --device {device} --n {problem.n} --k {problem.k}"]
    if problem.m is not None:
        words.append(f"--m {problem.m}")
    if problem.input != "bf16":
        words.append(f"--input {problem.input}")
    if problem.output != problem.input:
        words.append(f"--output {problem.output}")
    words += ["--bias"] if problem.bias else []
    words += [f"--model {quote(problem.model)}"] if problem.model is not None else []
    for name in ("weight_granularity", "weight_block", "weight_scale", "input_granularity", "input_scaling"):
        value, usual = getattr(problem, name), getattr(plain, name)
        needed = (
            name == "weight_block" and value is not None and value != table.schemes[problem.scheme].weight.blocks[0]
        )
        if value is not None and (needed or (name != "weight_block" and value != usual)):
            words.append(f"--{name.replace('_', '-')} {block_text(value) if isinstance(value, tuple) else value}")
    return " ".join([*words, more] if more else words)


def _size_text(axis: Axis, mask: int, within: int) -> str:
    """Numbers of one size; for m also whether an unknown one is among them."""
    known_m = axis.cells[0] is not None
    number_bits = mask if known_m else mask & ~1
    unknown = not known_m and mask & 1
    if not number_bits:
        return "m unknown"
    every = number_bits == (within if known_m else within & ~1)
    found = [span.text(axis.name) for span in spans(axis, number_bits, within)]
    text = f"{axis.name} known" if every and not unknown else " or ".join(_few(found))
    return f"{text} or unknown" if unknown else text


def _few(parts: list[str]) -> list[str]:
    return parts if len(parts) <= MOST_PARTS else [*parts[:MOST_PARTS], f"{len(parts) - MOST_PARTS} more ranges"]


def _either(values: Sequence[str]) -> str:
    return " or ".join(values)


def _named(axis: Axis) -> str:
    return "input_quantization" if axis.name == "taken" else axis.name


def _value(axis: Axis, place: int) -> str:
    facts = axis.atoms[place]
    if "bias" in facts:
        return "yes" if facts["bias"] else "no"
    values = [str(value) for value in facts.values() if value is not UNASKED]
    text = values[0] if values[0] == "none" else " ".join(values)
    return f"another block (such as {values[1]})" if place == axis.other else text
