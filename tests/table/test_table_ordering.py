"""What the verbs of an order do to steps with conditions: nothing is widened or lost without a word."""

from __future__ import annotations

import pytest
from table_samples import codes, laid_over

from kerneltable.model import Problem
from kerneltable.select import device, select
from kerneltable.table.load import read
from kerneltable.table.origin import origins


def shipped(verbs: str, route: str = "fp8_w8a8", platform: str = "cuda"):
    """The steps that the verbs give a shipped route, as (kernel, condition), and the findings."""
    text = f"override: 1\nroutes: {{{route}: {{{platform}: {{order: {verbs}}}}}}}\n"
    table, findings = read(None, [("a.yaml", text)], plugins=False)
    assert table is not None, findings
    steps = table.routes[route, platform].steps
    return [(step.kernel, len(step.when)) for step in steps], findings, table


def places(steps: list[tuple[str, int]], kernel: str) -> list[tuple[int, int]]:
    """Where the kernel stands, and how many limits each of its steps has."""
    return [(place, limits) for place, (name, limits) in enumerate(steps) if name == kernel]


def test_a_step_with_a_condition_is_added_beside_the_one_without() -> None:
    verbs = "{prepend: [{kernel: triton_w8a16, when: {m: {max: 8}}}]}"
    steps, findings, table = shipped(verbs, "fp8_block_w8a8")
    assert findings == ()
    assert places(steps, "triton_w8a16") == [(0, 1), (13, 0)]
    chosen = {
        m: select(table, device("a100", table), Problem("fp8_block_w8a8", n=4096, k=7168, m=m)).kernel for m in (8, 64)
    }
    assert chosen == {8: "triton_w8a16", 64: "triton_w8a16"}


def test_a_step_with_the_same_condition_moves() -> None:
    verbs = "{prepend: [{kernel: cpu_fp8_amx, when: {m: {min: 6}}}], append: [torch_mxfp8_emulation]}"
    steps, findings, _ = shipped(verbs, "mxfp8", "cpu")
    assert "KT412" not in codes(findings)
    assert places(steps, "cpu_fp8_amx") == [(0, 1)]


def test_a_name_moves_the_step_without_a_condition_and_leaves_the_band() -> None:
    steps, findings, _ = shipped("{after: {triton_fp8_rowwise: [torch_scaled_mm_tensorwise]}}")
    assert findings == ()
    assert [limits for _, limits in places(steps, "torch_scaled_mm_tensorwise")] == [3, 0]
    assert steps[0] == ("torch_scaled_mm_tensorwise", 3)


def test_a_name_with_conditions_alone_moves_with_them_and_a_note_names_the_line() -> None:
    steps, findings, _ = shipped("{prepend: [torch_mxfp8_emulation, cpu_fp8_amx]}", "mxfp8", "cpu")
    assert steps[:2] == [("torch_mxfp8_emulation", 0), ("cpu_fp8_amx", 1)]
    (note,) = [finding for finding in findings if finding.code == "KT412"]
    assert "cpu_fp8_amx moves with its conditions: cpu_fp8_amx when {m: {min: 6}} (dispatch.yaml:" in note.message
    assert (note.severity, note.mark.file, note.mark.line) == ("note", "a.yaml", 2)
    assert "`replace`" in note.help


def test_a_name_in_front_of_its_own_band_leaves_the_band_out_with_a_note() -> None:
    steps, findings, _ = shipped("{prepend: [torch_scaled_mm_tensorwise]}")
    assert places(steps, "torch_scaled_mm_tensorwise") == [(0, 0)]
    (note,) = [finding for finding in findings if finding.code == "KT412"]
    assert "without a condition, so what it hides is left out: torch_scaled_mm_tensorwise when {m: {min: 1025}" in (
        note.message
    )


def test_a_second_condition_leaves_the_first_and_a_note_names_it() -> None:
    verbs = "{before: {cpu_fp8: [{kernel: cpu_fp8_amx, when: {m: {max: 2}}}]}}"
    steps, findings, _ = shipped(verbs, "w8a16_fp8", "cpu")
    assert places(steps, "cpu_fp8_amx") == [(0, 1), (1, 1)]
    (note,) = [finding for finding in findings if finding.code == "KT412"]
    assert "cpu_fp8_amx when {m: {min: 3}} (dispatch.yaml:" in note.message


def test_two_bands_and_the_rest_of_one_kernel_may_stand_in_one_order() -> None:
    bands = "[{kernel: fast, when: {m: {max: 8}}}, {kernel: fast, when: {n: {max: 64}}}]"
    table, findings = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {{prepend: {bands}, append: [fast]}}}}}}}}\n")
    assert table is not None, findings
    assert [(s.kernel, len(s.when)) for s in table.routes["fp8_w8a8", "cuda"].steps] == [
        ("fast", 1), ("fast", 1), ("reference", 0), ("fast", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("verbs", [
    "prepend: [{kernel: fast, when: {m: {max: 8}}}], append: [{kernel: fast, when: {m: {max: 8}}}]",
    "prepend: [fast], append: [{kernel: fast}]",
    "remove: [fast], append: [{kernel: fast, when: {m: {max: 8}}}]",
])  # fmt: skip
def test_one_step_in_two_places_of_an_order_is_refused(verbs: str) -> None:
    table, findings = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {{{verbs}}}}}}}}}\n")
    assert (table, codes(findings)) == (None, ["KT409"])


def test_a_band_behind_the_step_without_a_condition_is_refused_and_not_dropped() -> None:
    band = "{append: [{kernel: fast, when: {m: {max: 8}}}]}"
    table, findings = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {band}}}}}}}\n")
    assert table is None
    assert "KT314" in codes(findings)


@pytest.mark.parametrize("verbs", [
    "{prepend: [{kernel: fast, when: {m: {max: 8}}}]}", "{prepend: [reference]}",
    "{prepend: [{kernel: fast, when: {m: {max: 8}}}, {kernel: fast, when: {m: {max: 9}}}], after: {reference: [fast]}}",
])  # fmt: skip
def test_an_order_with_bands_applied_twice_is_applied_once(verbs: str) -> None:
    text = f"routes: {{fp8_w8a8: {{cuda: {{order: {verbs}}}}}}}\n"
    once, twice = laid_over(text), laid_over(text, text)
    assert once[0] is not None
    assert twice[0] is not None
    assert "KT405" in codes(twice[1])
    assert "KT412" not in codes(twice[1])
    steps = [
        [(s.kernel, [p.key for p in s.when]) for s in t.routes["fp8_w8a8", "cuda"].steps] for t in (once[0], twice[0])
    ]
    assert steps[0] == steps[1]


def test_an_added_band_has_no_history_and_the_other_step_keeps_its_own() -> None:
    text = "routes: {fp8_w8a8: {cuda: {order: {prepend: [{kernel: reference, when: {m: {max: 8}}}]}}}}\n"
    table, _ = laid_over(text)
    assert table is not None
    found = [one for one in origins(table) if one.path[:3] == ("routes", "fp8_w8a8", "cuda")]
    assert [(one.text, one.mark.file == "a.yaml", one.replaced) for one in found] == [
        ("reference when {m: {max: 8}}", True, ()), ("fast", False, ()), ("reference", False, ()),
    ]  # fmt: skip
