"""Comparing capabilities and version bounds, as number tuples: "8.10" is above "8.9"."""

from __future__ import annotations

import re

from kerneltable.model import Capability

_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<) ?([0-9]+(?:\.[0-9]+)*)")
Clause = tuple[str, tuple[int, ...]]


def capability(text: str) -> Capability:
    """ "12.1" -> (12, 1); the schema has checked the form."""
    major, minor = text.split(".")
    return int(major), int(minor)


def clauses(spec: str) -> list[Clause]:
    """ ">=2.10, <3" -> [(">=", (2, 10)), ("<", (3,))]; trailing zeros do not count: 2.0 is 2."""
    return [(sign, _version(number)) for sign, number in _CLAUSE.findall(spec)]


def _version(number: str) -> tuple[int, ...]:
    parts = [int(part) for part in number.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def narrower(new: str, old: str) -> bool:
    """True when every version that fits `new` fits `old` too, shown clause by clause."""
    return all(any(_implies(have, want) for have in clauses(new)) for want in clauses(old))


def _implies(have: Clause, want: Clause) -> bool:
    """True when a version that satisfies `have` must satisfy `want`."""
    (sign, number), (wanted, bound) = have, want
    if wanted == ">=":
        return sign in (">=", ">", "==") and number >= bound
    if wanted == ">":
        return (sign == ">" and number >= bound) or (sign in (">=", "==") and number > bound)
    if wanted == "<=":
        return sign in ("<=", "<", "==") and number <= bound
    if wanted == "<":
        return (sign == "<" and number <= bound) or (sign in ("<=", "==") and number < bound)
    if wanted == "==":
        return sign == "==" and number == bound
    excluded = {"!=": number == bound, "==": number != bound, ">": number >= bound, ">=": number > bound}
    return excluded.get(sign, number <= bound if sign == "<" else number < bound)
