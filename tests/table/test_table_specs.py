"""Version bounds: compared as numbers, and narrower only when it is sure."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltable.table.specs import capability, clauses, narrower

VERSIONS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
SPECS = st.lists(
    st.tuples(st.sampled_from([">=", ">", "<=", "<", "==", "!="]), VERSIONS).map("".join), min_size=1, max_size=2
).map(",".join)


def fits(version: str, spec: str) -> bool:
    number = clauses("==" + version)[0][1]
    tests = {
        ">=": lambda a, b: a >= b, ">": lambda a, b: a > b, "<=": lambda a, b: a <= b,
        "<": lambda a, b: a < b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    }  # fmt: skip
    return all(tests[sign](number, bound) for sign, bound in clauses(spec))


@settings(max_examples=800, deadline=None, derandomize=True)
@given(SPECS, SPECS, VERSIONS)
def test_a_narrower_spec_never_fits_more(new, old, version):
    if narrower(new, old) and fits(version, new):
        assert fits(version, old)


@pytest.mark.parametrize(("new", "old", "expected"), [
    (">=2.11", ">=2.10", True), (">=2.9", ">=2.10", False), (">=2.10,<3", ">=2.10", True),
    (">=2.10", ">=2.10,<3", False), ("==2.11", ">=2.10", True), (">2.10", ">=2.10", True), (">=2.10", ">2.10", False),
    (">2.10", ">2.10", True), ("==2.11", ">2.10", True), ("<3", "<=3", True), ("<=3", "<3", False),
    ("<=2", "<3", True), ("<2", "<3", True), ("==2", "==2.0", True), (">=2", "==2", False), ("!=2", "!=2", True),
    ("==3", "!=2", True), (">2", "!=2", True), (">=2", "!=2", False), ("<2", "!=2", True), ("<=2", "!=2", False),
    ("==2", "<=2", True), (">=2", "<=2", False),
])  # fmt: skip
def test_a_spec_is_narrower_when_each_old_bound_follows(new, old, expected):
    assert narrower(new, old) is expected


def test_numbers_of_versions_compare_as_numbers():
    assert capability("8.10") > capability("8.9")
    assert clauses(">= 2.10 , <3.0") == [(">=", (2, 10)), ("<", (3,))]
