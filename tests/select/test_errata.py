"""Errata: what a denial may speak of, and when it holds."""

from __future__ import annotations

from typing import Any

import pytest

from kerneltable.model import Problem, Table
from kerneltable.select import device, select
from kerneltable.select.lint import prove
from kerneltable.select.regions import winners
from kerneltable.select.space import space_of
from kerneltable.table import load_table
from kerneltable.table.load import read

KERNEL = "triton_w8a16"


def denying(tmp_path: Any, when: str) -> Table:
    """The shipped table with one erratum more."""
    text = load_table(plugins=False).layers[0].text
    why = 'reason: wrong sums, link: "https://example.org/1", until: "2099-01-01"'
    row = f"  - {{deny: {KERNEL}, when: {{{when}}}, {why}}}\n"
    head = "" if "\nerrata:\n" in text else "\nerrata:\n"
    file = tmp_path / "table.yaml"
    file.write_text(text.replace("\nerrata:\n", f"\nerrata:\n{row}") if not head else f"{text}{head}{row}")
    table, findings = read(file, ())
    assert table is not None, findings
    return table


def denied(table: Table, name: str = "a100", packages: dict[str, str | None] | None = None, **asked: Any) -> bool:
    problem = Problem("w8a16_fp8", **{"n": 128, "k": 128, "m": 8, **asked})
    selection = select(table, device(name, table, packages=packages), problem)
    (candidate,) = [c for c in selection.candidates if c.kernel == KERNEL]
    return any(refusal.predicate == "erratum" for refusal in candidate.refusals)


@pytest.mark.parametrize(("when", "holds", "does_not"), [
    ("platform: cuda", {"name": "a100"}, {"name": "mi300x"}),
    ("architectures: [sm80]", {"name": "a100"}, {"name": "l4"}),
    ("families: [sm8x]", {"name": "l4"}, {"name": "h200"}),
    ("schemes: [w8a16_fp8]", {}, None),
    ("schemes: [mxfp8]", None, {}),
    ("m: {max: 8}", {"m": 8}, {"m": 9}),
    ("m: {max: 8}", {"m": None}, {"m": 9}),
    ("n: {min: 100, multiple_of: 64}", {"n": 128}, {"n": 64}),
    ("k: {max: 128}", {"k": 128}, {"k": 256}),
    ("input: [f16]", {"input": "f16"}, {"input": "bf16"}),
    ("weight_granularity: [tensor]", {"weight_granularity": "tensor"}, {"weight_granularity": "channel"}),
    ('models: ["Qwen/*", "*-FP8"]', {"model": "Qwen/Qwen3-8B"}, {"model": "qwen/Qwen3-8B"}),
    ('models: ["Qwen/*", "*-FP8"]', {"model": "acme/M-FP8"}, {"model": None}),
    ('models: ["Qwen/*"], m: {max: 8}', {"model": "Qwen/x", "m": 8}, {"model": "Qwen/x", "m": 9}),
])  # fmt: skip
def test_a_denial_holds_exactly_where_it_says(tmp_path: Any, when: str, holds: Any, does_not: Any) -> None:
    table = denying(tmp_path, when)
    if holds is not None:
        assert denied(table, **holds)
    if does_not is not None:
        assert not denied(table, **does_not)


def test_a_denial_of_versions_holds_for_those_that_are_known(tmp_path: Any) -> None:
    table = denying(tmp_path, 'packages: {triton: ">=3.5,<3.6"}')
    here = {"torch": "2.12", "kerneltable": "0.1"}
    assert denied(table, packages=here | {"triton": "3.5.1"})
    assert not denied(table, packages=here | {"triton": "3.6.0"})
    assert not denied(table, packages=here | {"triton": None})


def test_a_denial_says_why_where_and_until_when(tmp_path: Any) -> None:
    table = denying(tmp_path, "architectures: [sm80]")
    selection = select(table, device("a100", table), Problem("w8a16_fp8", n=128, k=128))
    refusal = next(c for c in selection.candidates if c.kernel == KERNEL).refusals[0]
    assert (refusal.wanted, refusal.found) == ("no erratum", "wrong sums (until 2099-01-01) [https://example.org/1]")
    assert refusal.where.file.endswith("table.yaml")


def test_regions_speak_of_no_model_as_a_layer_without_a_name(tmp_path: Any) -> None:
    table, plain = denying(tmp_path, 'models: ["*"]'), load_table(plugins=False)
    found = [
        [(won.kernel, won.boxes) for won in winners(t, device("a100", t), space_of("w8a16_fp8", t))]
        for t in (table, plain)
    ]
    assert found[0] == found[1]
    assert denied(table, model="any name")
    assert not denied(table)


@pytest.mark.parametrize("when", [
    "platform: xpu, schemes: [mxfp8]", "architectures: [sm80], families: [sm12x]", "architectures: [sm70]",
    "architectures: [sm70], schemes: [w8a16_fp8], weight_granularity: [block], weight_block: [\"7x7\"], k: {max: 1}",
])  # fmt: skip
def test_an_erratum_that_no_chip_and_no_problem_fits_is_a_warning(tmp_path: Any, when: str) -> None:
    (proof,) = [proof for proof in prove(denying(tmp_path, when)) if proof.code == "KT509"]
    assert proof.message == "'triton_w8a16' is never denied here: no problem that it takes fits `when` on any chip"
    assert (proof.mark.file.endswith("table.yaml"), proof.path) == (True, ("errata", 0, "deny"))


@pytest.mark.parametrize("when", [
    "platform: cuda", "architectures: [sm80]", 'packages: {triton: ">=3.5,<3.6"}', 'models: ["a/*"]', "m: {max: 1}",
    'models: ["a"], packages: {triton: "<1"}, schemes: [w8a16_fp8], n: {multiple_of: 7}',
])  # fmt: skip
def test_an_erratum_that_may_hold_is_no_finding(tmp_path: Any, when: str) -> None:
    assert [proof for proof in prove(denying(tmp_path, when)) if proof.code == "KT509"] == []


def test_an_erratum_stays_without_a_word_where_an_override_takes_its_kernel_out(tmp_path: Any) -> None:
    denying(tmp_path, "schemes: [w8a16_fp8], platform: cuda")
    out = "override: 1\nroutes: {w8a16_fp8: {cuda: {order: {remove: [triton_w8a16]}}}}\n"
    table = load_table(tmp_path / "table.yaml", [("a.yaml", out)])
    assert [proof for proof in prove(table) if proof.code == "KT509"] == []
