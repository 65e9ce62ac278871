"""Mutants of a table: what a slip of the hand or a bad merge could make of it, one change each.

A table is taken as plain data (dicts, lists, text, numbers); a mutant is written as JSON, which is YAML.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
Data = dict[str, Any]
Change = tuple[str, Any]

DTYPES = {
    "bf16": ("f16", "f32"), "f16": ("bf16", "f32"), "f32": ("bf16", "f16"), "e8m0": ("f32", "bf16"),
    "e4m3": ("none",), "none": ("e4m3",), "fn": ("fnuz",), "fnuz": ("fn",),
}  # fmt: skip
OTHER = {
    "fp8_promoted": "mma_f32", "mma_f32": "f32", "f32": "mma_f32", "scaled_16": "mma_f32", "native": "weight_only",
    "weight_only": "emulation", "emulation": "reference", "reference": "emulation", "channel": "tensor",
    "tensor": "channel", "token": "tensor", "block": "tensor", "dynamic": "static", "static": "dynamic",
}  # fmt: skip
PROSE = ("summary", "why", "verified", "status")
"""Keys that decide nothing: who says what a row is for, and where it was tried."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a table: which operator made it, where, what stood there and what stands there now."""

    operator: str
    path: Path
    before: Any
    after: Any

    @property
    def name(self) -> str:
        return f"{self.operator} {'.'.join(map(str, self.path))}: {_difference(self.before, self.after)}"

    def of(self, data: Data) -> Data:
        """The table with this change; the given one stays as it is."""
        changed = copy.deepcopy(data)
        inner: Any = changed
        for key in self.path[:-1]:
            inner = inner[key]
        inner[self.path[-1]] = self.after
        return changed


def mutants(data: Data) -> list[Mutant]:
    """Every mutant of every operator, in the order of the file; none equals the table."""
    return [
        Mutant(operator, path, value, changed)
        for path, value in _walk(data)
        if path
        for operator, changed in _changes(path, value)
        if changed != value
    ]


def chosen(found: list[Mutant], count: int, least: int = 20) -> list[Mutant]:
    """About `count` of them, each operator in its proportion (but `least` of it), evenly spread over the file."""
    by_operator: dict[str, list[Mutant]] = {}
    for mutant in found:
        by_operator.setdefault(mutant.operator, []).append(mutant)
    picked = []
    for group in by_operator.values():
        wanted = min(len(group), max(least, round(count * len(group) / len(found))))
        picked += [group[place * len(group) // wanted] for place in range(wanted)]
    return picked


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key not in PROSE or len(path) != 2:
            yield from _walk(inner, (*path, key))


def _changes(path: Path, value: Any) -> Iterator[Change]:
    """What the operators make of one value."""
    if isinstance(value, bool):
        yield "flip", not value
    elif isinstance(value, int) and path != ("table",):
        yield from (("off by one", value + 1), ("off by one", value - 1))
    elif isinstance(value, str):
        yield from _text_changes(path, value)
    elif isinstance(value, list):
        yield from _list_changes(path, value)
    elif isinstance(value, dict):
        yield from _mapping_changes(path, value)


def _text_changes(path: Path, value: str) -> Iterator[Change]:
    capability = re.fullmatch(r"([0-9]+)\.([0-9]+)", value)
    if capability:
        major, minor = map(int, capability.groups())
        yield "off by one", f"{major}.{minor + 1}"
        yield "off by one", f"{major}.{minor - 1}" if minor else f"{major - 1}.9"
    if "packages" in path:
        yield from (("comparison", changed) for changed in _specs(value))
        yield from (("off by one", changed) for changed in _versions(value))
    block = re.fullmatch(r"([0-9]+)x([0-9]+)", value)
    if block:
        yield "off by one", f"{int(block[1]) * 2}x{block[2]}"
    for other in DTYPES.get(value, ()) if "accumulator" not in path else ():
        yield "dtype", other
    if value in OTHER and path[-1] not in ("input", "output"):
        yield "dtype", OTHER[value]
    if "parameters" in path:
        yield "rename", f"{value}_inv"
    if path[-1] == "layout":
        yield "rename", "swizzled" if value == "checkpoint" else "checkpoint"
    if "devices" in path:
        yield "rename", f"{value[:-1]}{'1' if value[-1] == '0' else '0'}"


def _specs(value: str) -> Iterator[str]:
    for old, new in ((">=", ">"), (">=", "<="), ("<", "<=")):
        if re.search(rf"{old}(?!=)", value):
            yield re.sub(rf"(?<![<>=]){old}(?!=)", new, value, count=1)


def _versions(value: str) -> Iterator[str]:
    for found in re.finditer(r"([0-9]+)(?=,|$)", value):
        number = int(found[1])
        yield value[: found.start()] + str(number + 1) + value[found.end() :]
        if number:
            yield value[: found.start()] + str(number - 1) + value[found.end() :]


def _list_changes(path: Path, value: list[Any]) -> Iterator[Change]:
    for place in range(len(value)):
        yield "drop", [*value[:place], *value[place + 1 :]]
    if path[0] in ("routes", "schemes"):  # elsewhere the order of a list says nothing
        for place in range(len(value) - 1):
            yield "swap", [*value[:place], value[place + 1], value[place], *value[place + 2 :]]


def _mapping_changes(path: Path, value: Data) -> Iterator[Change]:
    limits = {"accepts", "runs_on", "needs", "when"} & set(map(str, path))
    for key in value:
        rest = {name: inner for name, inner in value.items() if name != key}
        if limits:
            yield "delete constraint", rest
        elif path[0] != "kernels" or len(path) == 1:  # a row's own keys are all required: to drop one proves nothing
            yield "drop", rest
        for one, other in (("min", "max"), ("max", "min")):
            if key == one and other not in value:
                yield "comparison", {**rest, other: value[one]}
        if path[-1] == "parameters":
            yield "rename", {(f"{key}_inv" if name == key else name): inner for name, inner in value.items()}
    if {"min", "max"} <= set(value):
        yield "comparison", {**value, "min": value["max"], "max": value["min"]}


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        gone, new = ([name for name in one if name not in other] for one, other in ((before, after), (after, before)))
        return " ".join([f"-{name}" for name in gone] + [f"+{name}" for name in new]) or _short(after)
    return f"{_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = str(value).replace("'", "")
    return text if len(text) <= 60 else f"{text[:57]}..."
