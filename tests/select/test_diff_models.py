"""Differences for some models: what an erratum with `when.models` changes is told, for these models alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneltable.model import Problem, Table
from kerneltable.select import device, select
from kerneltable.select.diff import diff
from kerneltable.select.model_kinds import kinds_of_models, name_for
from kerneltable.table import load_table

SHIPPED = Path(__file__).parents[2] / "dispatch.yaml"


def with_errata(tmp_path: Path, *whens: str, name: str = "table.yaml") -> Table:
    """The shipped table with errata on hopper_fp8_block."""
    rows = "".join(
        f'  - {{deny: hopper_fp8_block, when: {{{when}}}, reason: bad, link: "https://a.b/1"}}\n' for when in whens
    )
    file = tmp_path / name
    file.write_text(SHIPPED.read_text() + "errata:\n" + rows)
    return load_table(file)


def test_an_erratum_for_some_models_is_a_change_for_these_alone(tmp_path: Path) -> None:
    one, other = load_table(SHIPPED), with_errata(tmp_path, 'models: ["Qwen/Qwen3-*"], m: {max: 8}')
    changes = diff(one, other)
    assert {change.models for change in changes} == {("Qwen/Qwen3-*",)}
    assert {change.before.kernel for change in changes} == {"hopper_fp8_block"}
    for change in changes:
        for table, side in ((one, change.before), (other, change.after)):
            assert select(table, change.devices[0], change.problem).kernel == side.kernel
        unnamed = Problem(change.scheme, n=change.problem.n, k=change.problem.k, m=change.problem.m)
        assert select(one, change.devices[0], unnamed).kernel == select(other, change.devices[0], unnamed).kernel


@pytest.mark.parametrize("when", ['models: ["Qwen/*"], architectures: [sm80]', 'models: ["Qwen/*"], schemes: [mxfp8]'])
def test_an_erratum_for_some_models_that_changes_no_decision_is_no_change(tmp_path: Path, when: str) -> None:
    assert diff(load_table(SHIPPED), with_errata(tmp_path, when)) == ()


def test_the_same_errata_in_both_tables_are_no_change(tmp_path: Path) -> None:
    when = 'models: ["Qwen/*", "*-FP8"]'
    assert diff(with_errata(tmp_path, when), with_errata(tmp_path, when, name="other.yaml")) == ()


def test_what_changes_for_all_is_not_told_again_for_some(tmp_path: Path) -> None:
    one = with_errata(tmp_path, 'models: ["Qwen/*"], m: {max: 8}')
    other = with_errata(tmp_path, 'models: ["Qwen/*"], m: {max: 8}', "m: {min: 65}", name="other.yaml")
    h200 = (device("h200", one), device("h200", other))
    assert {change.models for change in diff(one, other, [h200])} == {()}


def test_models_that_two_patterns_share_are_a_kind_of_their_own(tmp_path: Path) -> None:
    table = with_errata(tmp_path, 'models: ["Qwen/*"]', 'models: ["*-FP8"]')
    assert [kind.patterns for kind in kinds_of_models(table)] == [("Qwen/*",), ("*-FP8",), ("Qwen/*", "*-FP8")]
    assert kinds_of_models(load_table(SHIPPED)) == []


@pytest.mark.parametrize(("pattern", "name"), [
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"), ("Qwen/*-FP8", "Qwen/x-FP8"), ("a?c", "axc"), ("v[12]", "v1"), ("v[!ab]", "vc"),
    ("[*]x", "*x"), ("open[", "open["),
])  # fmt: skip
def test_a_pattern_has_a_name_that_fits_it(pattern: str, name: str) -> None:
    assert name_for(pattern) == name
