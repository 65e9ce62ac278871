"""Versions and capabilities as number tuples: "2.11.0+cu130" is (2, 11, 0), and "8.10" is above "8.9"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

Numbers = tuple[int, ...]

COMPARISONS: dict[str, Callable[[Numbers, Numbers], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def numbers(version: str) -> Numbers:
    """The leading numbers of a version: "2.12.0a0+git1" is (2, 12, 0), "unknown" is ().

    A pre-release counts as its release. Trailing zeros are dropped, so that 2.10 equals 2.10.0.
    """
    found: list[int] = []
    for part in version.strip().removeprefix("v").split("+")[0].split("."):
        digits = re.match(r"[0-9]{1,18}", part)
        if digits is None:
            break
        found.append(int(digits.group()))
        if digits.end() != len(part):
            break
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def version_fits(spec: str, version: str) -> bool:
    """Whether a version fits a comma list of >=, >, <=, <, == and != ("2.11.0" fits ">=2.10,<3").

    A version without any number fits nothing; an item that is no comparison is fitted by nothing.
    """
    found = numbers(version)
    if not found and not re.match(r"v?[0-9]", version.strip()):
        return False
    for item in spec.split(","):
        parts = re.match(r"\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*\Z", item)
        if parts is None or not COMPARISONS[parts[1]](found, numbers(parts[2])):
            return False
    return True


def capability_of(text: str) -> tuple[int, int] | None:
    """A capability as (major, minor): "9.0", "9.0a" and "10.3f" are read, everything else is None."""
    parts = re.match(r"([0-9]{1,4})\.([0-9]{1,4})[af]?\Z", text)
    return (int(parts[1]), int(parts[2])) if parts else None


def distribution(name: str) -> str:
    """The name of a Python distribution in its one spelling: "Deep_GEMM" and "deep.gemm" are "deep-gemm"."""
    return name.lower() if name.isalnum() else re.sub(r"[-_.]+", "-", name.strip()).lower()
