"""The kinds of models that denials tell apart: which patterns of names hold at once, shown by one name each.

Set algebra does not reach into patterns: a kind is found by trying the name that a pattern stands for, and the names
that two patterns share. Three patterns that hold at once, and no two of them elsewhere, would be missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import permutations
from string import ascii_lowercase, digits

from kerneltable.model import Denial, Table

MOST_NAMES = 256
"""How many names are tried, so that many patterns take a bounded time; each pattern's own name comes first."""


@dataclass(frozen=True, slots=True)
class ModelKind:
    """Models that no denial tells apart: the name of one of them, and every pattern that it fits."""

    name: str
    patterns: tuple[str, ...]


def kinds_of_models(*tables: Table) -> list[ModelKind]:
    """Every kind of models that some denial of the tables speaks of; none when no denial has `models`."""
    patterns = list(dict.fromkeys(p for table in tables for denial in table.denials for p in denial.models))
    kinds: dict[tuple[str, ...], ModelKind] = {}
    for tried, name in enumerate(_names(patterns)):
        if tried >= max(MOST_NAMES, len(patterns)):
            break
        fitting = tuple(pattern for pattern in patterns if fnmatchcase(name, pattern))
        if fitting:
            kinds.setdefault(fitting, ModelKind(name, fitting))
    return list(kinds.values())


def table_for(table: Table, kind: ModelKind) -> Table:
    """The table as a layer of this kind of models meets it: its denials hold or are not there."""
    denials = tuple(replace(d, models=()) for d in table.denials if not d.models or _speaks_of(d, kind))
    return replace(table, denials=denials, answers={})


def _speaks_of(denial: Denial, kind: ModelKind) -> bool:
    return any(fnmatchcase(kind.name, pattern) for pattern in denial.models)


def _names(patterns: list[str]) -> Iterator[str]:
    """A name for each pattern, then names that two of them may share."""
    yield from map(name_for, patterns)
    for one, other in permutations(patterns, 2):
        if "*" in one:
            name = name_for(one.replace("*", other, 1))
            if fnmatchcase(name, one) and fnmatchcase(name, other):
                yield name


def name_for(pattern: str) -> str:
    """One name that fits a pattern of `fnmatch`."""
    return re.sub(r"\[!?\]?[^\]]*\]|[*?]", lambda found: _text_for(found[0]), pattern)


def _text_for(part: str) -> str:
    if part in "*?":
        return "x"
    characters = [*ascii_lowercase, *digits, *part[1:-1]]
    return next((character for character in characters if fnmatchcase(character, part)), part)
