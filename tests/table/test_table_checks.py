"""Cross-checks that need more than a file: constructors, days, names, and the Table that comes out."""

from __future__ import annotations

from datetime import date

import pytest
from table_samples import SMALL, TABLES, TODAY, changed, codes, laid_over, order, read_text

from kerneltable.errors import Finding
from kerneltable.model import Mark, MultipleOf, Needs, OneOf, Range
from kerneltable.table.load import read
from kerneltable.table.platforms import named_capability
from kerneltable.table.render import render
from kerneltable.table.report import Report, dotted, listed, nearest, shown

GOOD = TABLES / "good" / "small.yaml"
SIGNATURES = {
    "fast": {"weight": True, "weight_scale": True, "bias": False},
    "reference": {"weight": True, "weight_scale": True, "input_scale": False},
}


def against(signatures) -> list[Finding]:
    return list(read(GOOD, (), signatures=signatures, today=TODAY)[1])


def test_rows_that_fit_their_constructors_are_fine():
    assert against(SIGNATURES) == []


def test_a_parameter_that_the_constructor_does_not_take_is_refused():
    (found,) = against({**SIGNATURES, "reference": {"weight": True, "weight_scale": True}})
    assert found.code == "KT321"
    assert found.message == "kernel 'reference': parameters: its constructor does not take 'input_scale'"
    assert found.mark.line == 39


def test_a_required_parameter_that_the_row_lacks_is_refused():
    (found,) = against({**SIGNATURES, "fast": {"weight": True, "weight_scale": True, "workspace": True}})
    assert found.code == "KT322"
    assert "requires workspace" in found.message


def test_a_row_without_a_registered_kernel_is_refused():
    (found,) = against({"reference": SIGNATURES["reference"]})
    assert found.code == "KT323"
    assert (found.mark.line, found.mark.column) == (25, 3)


def test_a_registered_kernel_without_a_row_is_a_warning():
    table, findings = read(GOOD, (), signatures={**SIGNATURES, "extra": {}}, today=TODAY)
    assert table is not None
    assert codes(findings) == ["KT324"]


def test_signatures_of_a_table_without_kernels_are_not_held_against_it(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("table: 1\n")
    _, findings = read(path, (), signatures=SIGNATURES)
    assert set(codes(findings)) == {"KT202"}


def test_an_end_date_holds_through_its_day(tmp_path):
    row = (
        'errata: [{deny: fast, when: {platform: cuda}, reason: x, link: "https://example.org", until: "2026-11-21"}]\n'
    )
    path = tmp_path / "t.yaml"
    path.write_text(SMALL + row)
    assert codes(read(path, (), today=date(2026, 11, 21))[1]) == []
    assert codes(read(path, (), today=date(2026, 11, 22))[1]) == ["KT328"]


def test_a_kernel_may_stand_twice_under_different_conditions(tmp_path):
    steps = "[{kernel: fast, when: {m: {max: 8}}}, reference, fast, {kernel: reference, when: {m: {min: 9}}}]"
    _, findings = read_text(tmp_path, changed(("cuda: [fast, reference]", f"cuda: {steps}")))
    assert codes(findings) == ["KT314", "KT317"]  # the second reference; the first fast has a condition
    steps = "[{kernel: fast, when: {m: {max: 8}}}, {kernel: fast, when: {m: {min: 9}}}, reference]"
    table, findings = read_text(tmp_path, changed(("cuda: [fast, reference]", f"cuda: {steps}")))
    assert findings == ()
    assert order(table) == ["fast", "fast", "reference"]


def test_a_condition_is_checked_like_a_row(tmp_path):
    when = "{m: {min: 9, max: 8}, schemes: [other], architectures: [sm99], families: [sm99x]}"
    text = changed(("cuda: [fast, reference]", f"cuda: [{{kernel: fast, when: {when}}}, reference]"))
    assert codes(read_text(tmp_path, text)[1]) == ["KT311", "KT302", "KT304", "KT306"]
    row = f'errata: [{{deny: fats, when: {when}, reason: x, link: "https://example.org", until: "2026-02-30"}}]\n'
    assert codes(read_text(tmp_path, SMALL + row)[1]) == ["KT301", "KT311", "KT302", "KT304", "KT306", "KT327"]
    row = 'errata: [{deny: fast, when: {platform: cudo, architectures: [neon]}, reason: x, link: "https://e.org"}]\n'
    assert codes(read_text(tmp_path, SMALL + row)[1]) == ["KT303"]


def test_a_circle_of_three_names_its_members(tmp_path):
    text = changed(("sm80: {features: [mma_bf16], shared", "sm80: {like: sm120, shared"),
                   ("like: sm80, adds: [mma_fp8, wgmma]", "like: sm80"), ("like: sm90, removes: [wgmma]", "like: sm90"),
                   (", features: [mma_fp8]}", "}"))  # fmt: skip
    _, findings = read_text(tmp_path, text)
    assert set(codes(findings)) == {"KT308"}
    assert "sm80 is like sm120 is like sm90 is like sm80: a circle" in findings[0].message


def test_a_wrong_name_to_copy_is_not_answered_with_a_copy_of_itself(tmp_path):
    new = "platforms: {cuda: {architectures: {sm129: {like: sm12}, sm122: {like: sm129}}}}\n"
    _, findings = laid_over(new)
    assert codes(findings) == ["KT304"]
    assert findings[0].help == "did you mean 'sm120'?"
    _, findings = laid_over("platforms: {cuda: {architectures: {sm129: {like: sm129}}}}\n")
    assert "KT308" in codes(findings)


def test_a_tail_that_leads_into_a_circle_ends_too(tmp_path):
    text = changed(
        ("sm80: {features: [mma_bf16], shared", "sm80: {like: sm80, shared"), (", features: [mma_fp8]}", "}")
    )
    _, findings = read_text(tmp_path, text)
    assert "KT308" in codes(findings)
    assert codes(findings).count("KT308") == 1


@pytest.mark.parametrize(("name", "capability"), [
    ("sm80", (8, 0)), ("sm121", (12, 1)), ("sm90a", None), ("sm8", None), ("gfx90", None), ("sm080", None),
])  # fmt: skip
def test_a_capability_is_read_off_the_name(name, capability):
    assert named_capability(name) == capability


def test_an_architecture_without_a_telling_name_inherits_its_capability(tmp_path):
    text = changed(("sm120: {like: sm90, removes: [wgmma]", 'hopper: {like: sm90, capability: "9.1", removes: [wgmma]'))
    table, findings = read_text(tmp_path, text)
    assert findings == ()
    assert table is not None
    assert table.platforms["cuda"].architectures["hopper"].capability == (9, 1)
    text = changed(("sm120: {like: sm90, removes: [wgmma]", "hopper: {like: sm90, removes: [wgmma]"))
    assert codes(read_text(tmp_path, text)[1]) == ["KT331"]


# --- The Table


def test_the_table_holds_what_the_file_says():
    table, _ = read(GOOD, (), today=TODAY)
    assert table is not None
    chips = table.platforms["cuda"].architectures
    assert chips["sm90"].features == {"mma_bf16", "mma_fp8", "wgmma"}
    assert chips["sm120"].features == {"mma_bf16", "mma_fp8"}
    assert (chips["sm120"].capability, chips["sm120"].families) == ((12, 0), ("sm12x",))
    assert (chips["sm90"].shared_memory_kib, chips["sm120"].shared_memory_kib) == (163, 99)
    assert (chips["sm80"].fp8, chips["sm120"].fp8) == (None, "fn")
    assert table.platforms["cpu"].architectures["neon"].capability is None
    assert table.platforms["cuda"].devices == {"a100": "sm80", "h200": "sm90"}
    scheme = table.schemes["fp8_w8a8"]
    assert scheme.weight.granularities == ("channel", "tensor")
    assert scheme.input.scalings == ("dynamic", "static")
    assert scheme.parameters["weight_scale"].aliases == ("weight_scale_inv",)
    assert not scheme.parameters["input_scale"].required
    assert order(table) == ["fast", "reference"]
    assert table.kernels["reference"].verified[0].device == "h200"


def test_every_leaf_is_one_predicate_with_its_path_and_place():
    table, _ = read(TABLES / "good" / "every-key.yaml", (), today=TODAY)
    assert table is not None
    row = table.kernels["all_keys"]
    keys = [p.key for p in (*row.runs_on["cuda"].predicates, *row.needs, *row.accepts)]
    assert keys == [
        "runs_on.capability.min", "runs_on.capability.max", "runs_on.architectures", "runs_on.families",
        "runs_on.features", "runs_on.fp8", "needs.packages", "needs.packages", "needs.ops", "accepts.schemes",
        "accepts.weight_granularity", "accepts.weight_block", "accepts.weight_scale", "accepts.input_granularity",
        "accepts.input_scaling", "accepts.input", "accepts.output", "accepts.bias", "accepts.m.min", "accepts.m.max",
        "accepts.n.multiple_of", "accepts.k.min", "accepts.k.max", "accepts.k.multiple_of",
    ]  # fmt: skip
    at = {(type(p), p.key): p for p in (*row.runs_on["cuda"].predicates, *row.needs, *row.accepts)}
    assert at[Range, "runs_on.capability.max"].maximum == (12, 10)
    assert at[Range, "accepts.m.min"].minimum == 1
    assert at[MultipleOf, "accepts.n.multiple_of"].divisor == 64
    assert at[OneOf, "accepts.bias"].values == (False,)
    assert at[Needs, "needs.ops"].name == "_C::cutlass_scaled_mm"
    assert at[Needs, "runs_on.features"].version is None
    assert at[MultipleOf, "accepts.n.multiple_of"].mark.line == 52
    assert not row.runs_on["cuda"].portable
    step = table.routes["mxfp8", "cuda"].steps[0]
    assert [p.key for p in step.when] == ["when.m.max", "when.architectures", "when.families", "when.packages"]
    denial = table.denials[0]
    assert (denial.kernel, denial.source, denial.platform, denial.until) == (
        "all_keys",
        "erratum",
        "cuda",
        "2099-12-31",
    )
    assert [p.key for p in denial.predicates][-1] == "when.bias"


def test_every_value_has_a_mark():
    table, _ = read(GOOD, (), today=TODAY)
    assert table is not None
    assert table.marks["routes", "fp8_w8a8", "cuda", 1] == Mark(str(GOOD), 52, 18)
    assert table.marks["kernels", "fast", "accepts", "k", "min"].column == 116
    assert len(table.marks) > 100


def test_the_table_cannot_be_changed():
    table, _ = read(GOOD, (), today=TODAY)
    assert table is not None
    with pytest.raises(TypeError):
        table.kernels["x"] = table.kernels["fast"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        table.version = 2  # type: ignore[misc]


# --- Reports


def test_a_finding_shows_the_line_and_a_caret_under_the_value(tmp_path):
    _, findings = read_text(tmp_path, changed(("kind: native", "kind: nativ")))
    lines = render(findings[0])
    assert lines[0].endswith("table.yaml:34:11: error[KT204] " + findings[0].message)
    assert lines[1:] == [
        "  34 |     kind: nativ",
        "     |           ^^^^^",
        "  help: did you mean 'native'?",
        "  rule: kerneltable rule KT204",
    ]


def test_a_long_line_is_cut_around_the_caret():
    finding = Finding("KT105", "error", "x", Mark("f", 1, 300), length=500, line_text="a" * 299 + "B" + "a" * 300)
    excerpt, carets = render(finding)[1:3]
    assert len(excerpt) < 140
    assert excerpt[carets.index("^")] == "B"
    assert len(carets) <= len(excerpt)
    finding = Finding("KT105", "error", "x", Mark("f", 1, 3), line_text="a" * 299)
    excerpt, carets = render(finding)[1:3]
    assert excerpt.startswith("   1 | aaa")
    assert excerpt.endswith("...")


@pytest.mark.parametrize(("before", "value", "spaces", "carets"), [
    ("理由: ", "値", 6, 2),
    ("o\u0308de: ", "nai\u0308f", 5, 4),
    ("ＡＢ ｱ ", "x", 7, 1),
    ("é→ ", "ä…", 3, 2),
    ("🙂 ", "e\u20dd", 3, 1),
])  # fmt: skip
def test_carets_stand_under_wide_and_combining_characters(before, value, spaces, carets):
    text = f"{before}{value}  # 注"
    finding = Finding("KT105", "error", "x", Mark("f", 1, len(before) + 1), length=len(value), line_text=text)
    assert render(finding)[1:3] == [f"   1 | {text}", f"     | {' ' * spaces}{'^' * carets}"]


def test_a_caret_behind_the_end_of_a_wide_line_stands_behind_it():
    finding = Finding("KT105", "error", "x", Mark("f", 1, 3), length=9, line_text="値値")
    assert render(finding)[2] == "     |     ^"


def test_nothing_in_a_finding_reaches_the_terminal_raw():
    finding = Finding("KT105", "error", "x", Mark("a\x1b[31m", 1, 2), line_text="\x1b[31m\trest")
    assert "\x1b" not in "".join(render(finding))
    assert render(finding)[1] == "   1 | ?[31m?rest"
    assert render(Finding("KT121", "error", "x", Mark("f", 1, 1))) == [
        "f:1:1: error[KT121] x", "  rule: kerneltable rule KT121",
    ]  # fmt: skip


def test_names_are_printable_and_bounded():
    assert shown("a\x1b[31m") == "'a\\x1b[31m'"
    assert len(shown("a" * 500)) == 82
    assert dotted(("routes", "a\n", 0, "b")) == "routes.'a\\n'[0].b"
    assert listed(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"
    assert nearest("x", []) == "none is defined"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_findings_of_many_files_sort_by_file_then_place():
    report = Report(TODAY)
    for file, line in (("b", 1), ("a", 9), ("a", 2), ("elsewhere", 5)):
        report.add("KT301", f"{file}{line}", Mark(file, line, 1))
    report.add("KT301", "a2", Mark("a", 2, 1))
    found = report.finish({"a": "1\n2", "b": "x\r\n"})
    assert [f.message for f in found] == ["elsewhere5", "a2", "a9", "b1"]
    assert [f.line_text for f in found] == ["", "2", "", "x"]


def test_a_cut_never_hides_an_error_behind_warnings():
    report = Report(TODAY)
    for line in range(250):
        report.add("KT315", str(line), Mark("a", line + 1, 1))
    report.add("KT301", "the error", Mark("a", 900, 1))
    found = report.finish({"a": ""})
    assert "the error" in [f.message for f in found]
    assert found[-1].code == "KT125"
