"""docs/hard-cases.md and the tests agree: no case is missing, and every test that a row names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "hard-cases.md"
CASES = {"Y": 20, "T": 21, "M": 14, "D": 18, "C": 12, "R": 16}
ALL = [f"{group}{number:02}" for group, count in CASES.items() for number in range(1, count + 1)]
ROW = re.compile(r"^\| ([A-Z][0-9]{2}) \| (.+?) \| (.+) \|$", re.MULTILINE)
NOT_APPLICABLE = "does not apply: "


@cache
def rows() -> dict[str, str]:
    return {case: held for case, _, held in ROW.findall(PAGE.read_text(encoding="utf-8"))}


@cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def named_here() -> set[str]:
    return {name for path in Path(__file__).parent.glob("test_*.py") for name in names_in(path)}


def test_every_case_has_one_row_and_no_other_has() -> None:
    listed = [case for case, _, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))]
    assert sorted(listed) == sorted(ALL)
    assert len(ALL) == 101


@pytest.mark.parametrize("case", ALL)
def test_a_case_is_held_by_a_test_or_says_why_not(case: str) -> None:
    held = rows()[case]
    own = {name for name in named_here() if name.startswith(f"test_{case.lower()}_")}
    elsewhere = re.findall(r"`([a-z_/]+/test_\w+\.py)::(test_\w+)`", held)
    assert (f"`test_{case.lower()}`" in held) == bool(own)
    for file, name in elsewhere:
        assert name in names_in(TESTS / file), f"{file} has no {name}"
    assert own or elsewhere or held.startswith(NOT_APPLICABLE)
    assert len(elsewhere) + len(re.findall(r"`test_\w+`", held)) == held.count("`test_") + held.count("::test_")


def test_every_test_that_is_named_after_a_case_is_named_after_one_that_exists() -> None:
    cases = {match[1].upper() for name in named_here() if (match := re.match(r"test_([ytmdc][0-9]{2})_", name))}
    assert cases <= set(ALL)
    assert len(cases) > 50
