"""What a deployment changes, and what it must not change silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_samples import TABLES, TODAY, codes, laid_over, order

from kerneltable.errors import ProblemError
from kerneltable.model import Needs, OneOf, Range
from kerneltable.table import check_table, load_table
from kerneltable.table.load import read

TWO = TABLES / "good" / "every-key.yaml"


def ordered(verbs: str) -> tuple[list[str], list[str]]:
    table, findings = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {verbs}}}}}}}\n")
    return order(table), codes(findings)


@pytest.mark.parametrize(("verbs", "steps"), [
    ("{prepend: [reference]}", ["reference", "fast"]),
    ("{append: [fast]}", ["reference", "fast"]),
    ("{remove: [fast]}", ["reference"]),
    ("{before: {fast: [reference]}}", ["reference", "fast"]),
    ("{after: {reference: [fast]}}", ["reference", "fast"]),
    ("{replace: [reference]}", ["reference"]),
])  # fmt: skip
def test_a_verb_does_what_its_name_says(verbs, steps):
    assert ordered(verbs)[0] == steps


def test_verbs_apply_in_one_fixed_sequence_whatever_the_file_says():
    text = "routes: {mxfp8: {cuda: {order: {%s}}}}\n"
    one = laid_over(text % "append: [all_keys], remove: [reference]", table=str(TWO))
    two = laid_over(text % "remove: [reference], append: [all_keys]", table=str(TWO))
    assert order(one[0], "mxfp8") == order(two[0], "mxfp8") == ["all_keys"]


def test_a_step_with_a_condition_can_be_put_in_front():
    table, findings = laid_over(
        "routes: {fp8_w8a8: {cuda: {order: {prepend: [{kernel: reference, when: {m: {max: 8}}}]}}}}\n"
    )
    assert findings == ()
    assert order(table) == ["reference", "fast", "reference"]
    assert table is not None
    assert table.routes["fp8_w8a8", "cuda"].steps[0].when[0].key == "when.m.max"


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_stands_for_itself(tmp_path, kind):
    file = tmp_path / "deploy.yaml"
    file.write_text("override: 1\nroutes: {fp8_w8a8: {cuda: {order: {prepend: [reference]}}}}\n")
    small = TABLES / "good" / "small.yaml"
    assert load_table(small, kind(file)).digest == load_table(small, [file]).digest
    assert load_table(small, kind(file)).digest != load_table(small).digest


@pytest.mark.parametrize(("wrong", "found"), [
    (None, "; found NoneType"), (7, "; found int"), (b"a.yaml", "; found bytes"), ({"a.yaml": ""}, "; found dict"),
    ([7], "; item 0 is int"), (["a.yaml", ("a", "b", "c")], "; item 1 is tuple"), ([("a", 1)], "; item 0 is tuple"),
])  # fmt: skip
def test_overrides_that_are_no_list_of_paths_are_refused_in_words(wrong, found):
    for reader in (load_table, check_table):
        with pytest.raises(ProblemError) as caught:
            reader(TABLES / "good" / "small.yaml", wrong)
        wanted = "overrides must be a list of paths or of (name, text) pairs, or one path"
        assert str(caught.value) == f"{wanted}{found}: write overrides=['deploy.yaml']"


def test_a_value_remembers_the_file_that_set_it():
    table, _ = laid_over(
        "routes: {fp8_w8a8: {cuda: {order: {prepend: [reference]}}}}\n",
        "kernels: {fast: {accepts: {m: {max: 64}}}}\n",
    )
    assert table is not None
    steps = table.routes["fp8_w8a8", "cuda"].steps
    assert [step.mark.file for step in steps] == ["a.yaml", str(TABLES / "good" / "small.yaml")]
    bound = next(p for p in table.kernels["fast"].accepts if p.key == "accepts.m.max")
    assert isinstance(bound, Range)
    assert (bound.maximum, bound.mark.file, bound.mark.line) == (64, "b.yaml", 2)
    assert table.marks["kernels", "fast", "accepts", "m", "max"].file == "b.yaml"
    assert [layer.name for layer in table.layers][1:] == ["a.yaml", "b.yaml"]
    assert len({layer.sha256 for layer in table.layers}) == 3


def test_the_later_of_two_overrides_wins():
    lower, higher = "kernels: {fast: {accepts: {m: {max: 64}}}}\n", "kernels: {fast: {accepts: {m: {max: 32}}}}\n"
    table, findings = laid_over(lower, higher)
    assert findings == ()
    assert table is not None
    assert [p.maximum for p in table.kernels["fast"].accepts if p.key == "accepts.m.max"] == [32]
    assert codes(laid_over(higher, lower)[1]) == ["KT404"]  # widening what an earlier override narrowed is widening


@pytest.mark.parametrize("change", [
    "accepts: {m: {max: 64}}", "accepts: {k: {min: 256}}", "accepts: {k: {multiple_of: 256}}",
    "accepts: {input_scaling: [dynamic]}", 'runs_on: {cuda: {capability: {max: "9.9"}}}',
    "runs_on: {cuda: {features: [mma_fp8, mma_bf16]}}", "runs_on: {cuda: {architectures: [sm90]}}",
    'needs: {packages: {torch: ">=2.11,<3"}}', 'needs: {packages: {triton: ">=3"}}', 'needs: {ops: ["a::b"]}',
    "runs_on: {cuda: {portable: false}}", "status: deprecated", "why: another reason",
    "status: verified, verified: [{device: h200, date: \"2026-11-21\"}]",
])  # fmt: skip
def test_claiming_less_is_free(change):
    table, findings = laid_over(f"kernels: {{fast: {{{change}}}}}\n")
    assert findings == ()
    assert table is not None


@pytest.mark.parametrize("change", [
    "accepts: {k: {multiple_of: 64}}", "accepts: {k: {multiple_of: 192}}", "accepts: {output: [bf16, f32]}",
    "needs: {packages: {torch: \">=2.9\"}}", "parameters: [weight, weight_scale, input_scale]", "layout: other",
    "runs_on: {cuda: {portable: true}}", "summary: another", "kind: emulation",
])  # fmt: skip
def test_claiming_more_needs_to_be_said_aloud(change):
    assert codes(laid_over(f"kernels: {{fast: {{{change}}}}}\n")[1]) == ["KT404"]
    table, findings = laid_over(f"kernels: {{fast: {{{change}, unsafe: true, reason: measured}}}}\n")
    assert findings == ()
    assert table is not None


def test_fewer_ops_claim_more():
    narrow = 'kernels: {fast: {needs: {ops: ["a::b", "a::c"]}}}\n'
    assert codes(laid_over(narrow, 'kernels: {fast: {needs: {ops: ["a::b"]}}}\n')[1]) == ["KT404"]
    assert codes(laid_over(narrow, 'kernels: {fast: {needs: {ops: ["a::b", "a::c", "a::d"]}}}\n')[1]) == []


def test_a_complete_new_row_can_be_added():
    row = (
        "kernels:\n  mine:\n    summary: ours\n    parameters: [weight, weight_scale]\n"
        "    runs_on: {cpu: {portable: true}}\n"
        "    accepts: {schemes: [fp8_w8a8], input: [bf16], output: [bf16]}\n    layout: ours\n"
        "    numerics: {accumulator: f32, deterministic: true, batch_invariant: true}\n    kind: native\n"
        "    status: unverified\n    why: ours\nroutes: {fp8_w8a8: {cpu: {order: {prepend: [mine]}}}}\n"
    )
    table, findings = laid_over(row)
    assert findings == ()
    assert order(table, platform="cpu") == ["mine", "reference"]
    _, findings = laid_over(row.replace("    layout: ours\n", ""))
    assert codes(findings) == ["KT202"]
    assert findings[0].mark.file == "a.yaml"


def test_one_line_adds_a_chip():
    table, findings = laid_over("platforms: {cuda: {architectures: {sm129: {like: sm120}}, devices: {next: sm129}}}\n")
    assert findings == ()
    assert table is not None
    chip = table.platforms["cuda"].architectures["sm129"]
    assert (chip.capability, chip.families, chip.mark.file) == ((12, 9), ("sm12x",), "a.yaml")
    assert table.platforms["cuda"].devices["next"] == "sm129"


def test_a_scheme_can_get_another_alias():
    table, findings = laid_over(
        "schemes: {fp8_w8a8: {parameters: {weight_scale: {aliases: [weight_scale_inv, scale]}}}}\n"
    )
    assert findings == ()
    assert table is not None
    assert table.schemes["fp8_w8a8"].parameters["weight_scale"].aliases == ("weight_scale_inv", "scale")
    assert table.schemes["fp8_w8a8"].parameters["weight_scale"].required


def test_a_route_can_be_made_where_there_was_none():
    platform = "platforms: {xpu: {architectures: {bmg: {features: []}}}}\n"
    row = "kernels: {reference: {runs_on: {xpu: {portable: true}}, unsafe: true, reason: it is plain torch}}\n"
    table, findings = laid_over(platform + row + "routes: {fp8_w8a8: {xpu: {order: {append: [reference]}}}}\n")
    assert findings == ()
    assert order(table, platform="xpu") == ["reference"]
    assert codes(laid_over(platform)[1]) == ["KT316"]


def test_require_and_prefer_reach_the_route():
    table, findings = laid_over("routes: {fp8_w8a8: {cuda: {require: reference}, cpu: {prefer: reference}}}\n")
    assert findings == ()
    assert table is not None
    required, preferred = table.routes["fp8_w8a8", "cuda"], table.routes["fp8_w8a8", "cpu"]
    assert required.require is not None
    assert (required.require.kernel, required.require.mark.file, required.prefer) == ("reference", "a.yaml", None)
    assert preferred.prefer is not None
    assert table.marks["routes", "fp8_w8a8", "cuda", "require"].line == 2
    again = "routes: {fp8_w8a8: {cuda: {require: reference}}}\n"
    assert codes(laid_over(again, again)[1]) == ["KT405"]


def test_a_kernel_required_for_another_platform_may_be_switched_off_here():
    text = "routes: {fp8_w8a8: {cuda: {require: fast}}}\ndisable: [{kernel: fast, platform: cpu, reason: x}]\n"
    assert codes(laid_over(text)[1]) == ["KT405"]


@pytest.mark.parametrize(("first", "then"), [("require", "prefer"), ("prefer", "require")])
def test_a_later_choice_replaces_an_earlier_one_of_the_other_verb(first, then):
    choices = [f"routes: {{fp8_w8a8: {{cuda: {{{verb}: {kernel}}}}}}}\n" for verb, kernel in (
        (first, "reference"), (then, "fast"), (first, "reference"),
    )]  # fmt: skip
    table, findings = laid_over(*choices[:2])
    assert findings == ()
    assert table is not None
    route = table.routes["fp8_w8a8", "cuda"]
    assert (getattr(route, first), getattr(route, then).kernel) == (None, "fast")
    assert ("routes", "fp8_w8a8", "cuda", first) not in table.marks
    table, findings = laid_over(*choices)
    assert findings == ()
    assert table is not None
    route = table.routes["fp8_w8a8", "cuda"]
    assert (getattr(route, first).mark.file, getattr(route, then)) == ("c.yaml", None)


def test_a_preferred_kernel_that_is_switched_off_is_a_warning():
    text = "routes: {fp8_w8a8: {cuda: {prefer: fast}}}\n"
    table, findings = laid_over(text, "disable: [{kernel: fast, reason: x}]\n")
    assert table is not None
    (found,) = findings
    assert (found.code, found.severity, found.mark.file) == ("KT411", "warning", "a.yaml")
    assert found.message.endswith("fast is preferred here and switched off at b.yaml:2:11")
    elsewhere = "disable: [{kernel: reference, platform: cpu, reason: x}]\nallow_empty: true\n"
    assert codes(laid_over(text, elsewhere)[1]) == []


def test_disable_becomes_a_denial():
    table, findings = laid_over(
        'disable: [{kernel: fast, reason: "NaN at m=1", until: "2099-01-31", platform: cuda, scheme: fp8_w8a8}]\n'
    )
    assert findings == ()
    assert table is not None
    (denial,) = table.denials
    assert (denial.kernel, denial.source, denial.platform) == ("fast", "disable", "cuda")
    assert (denial.reason, denial.until, denial.link) == ("NaN at m=1", "2099-01-31", None)
    assert denial.predicates == (OneOf("when.schemes", ("fp8_w8a8",), denial.predicates[0].mark),)
    assert table.marks["disable", 0, "reason"].file == "a.yaml"


def test_the_same_kernel_switched_off_twice_counts_once():
    text = "disable: [{kernel: fast, reason: x}]\n"
    table, findings = laid_over(text, text)
    assert codes(findings) == ["KT405"]
    assert table is not None
    assert len(table.denials) == 1


def test_an_empty_route_is_possible_when_it_is_asked_for():
    table, findings = laid_over("allow_empty: true\nroutes: {fp8_w8a8: {cpu: {order: {remove: [reference]}}}}\n")
    assert findings == ()
    assert order(table, platform="cpu") == []
    table, findings = laid_over(
        "allow_empty: true\ndisable: [{kernel: reference, reason: x}, {kernel: fast, reason: x}]\n"
    )
    assert findings == ()
    assert table is not None


def test_what_an_override_expects_can_be_so():
    text = "expects: {table: 1, order_head: {fp8_w8a8/cuda: fast}}\ndisable: [{kernel: fast, reason: x}]\n"
    table, findings = laid_over(text)
    assert findings == ()
    assert table is not None


def test_nothing_of_an_override_is_applied_when_its_expectation_fails():
    _, findings = laid_over(
        "expects: {order_head: {fp8_w8a8/cuda: reference}}\nroutes: {nowhere: {cuda: {require: x}}}\n"
    )
    assert codes(findings) == ["KT406"]


def test_a_kernel_that_an_earlier_override_removed_is_a_warning():
    remove = "routes: {fp8_w8a8: {cuda: {order: {remove: [fast]}}}}\n"
    table, findings = laid_over(remove, remove)
    assert set(codes(findings)) == {"KT405"}
    assert order(table) == ["reference"]


def test_a_kernel_that_a_deployment_takes_out_is_not_called_unlisted():
    assert codes(laid_over("routes: {fp8_w8a8: {cuda: {order: {remove: [fast]}}}}\n")[1]) == []


def test_two_broken_overrides_are_both_reported_and_neither_applied():
    _, findings = laid_over("kernel: {}\n", "disable: [{kernel: fast}]\n")
    assert codes(findings) == ["KT201", "KT202"]
    assert [f.mark.file for f in findings] == ["a.yaml", "b.yaml"]


def test_an_override_with_a_broken_table_still_shows_its_own_mistakes(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("table: [")
    _, findings = read(path, [("a.yaml", "override: 2\n")], today=TODAY)
    assert codes(findings) == ["KT101", "KT210"]
    path.write_text("table: 1\n")
    _, findings = read(path, [("a.yaml", "override: 1\ndisable: [{kernel: fast, reason: x}]\n")], today=TODAY)
    assert set(codes(findings)) == {"KT202"}


DISJOINT = [
    "routes: {fp8_w8a8: {cuda: {order: {prepend: [reference]}}}}\n",
    "kernels: {fast: {accepts: {m: {max: 64}}}}\n",
    "disable: [{kernel: fast, platform: cuda, reason: x}]\n",
    "platforms: {cuda: {architectures: {sm129: {like: sm120}}}}\n",
    "routes: {fp8_w8a8: {cpu: {prefer: reference}}}\n",
]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.permutations(DISJOINT))
def test_disjoint_overrides_commute(files):
    def facts(table):
        assert table is not None
        bounds = [p.maximum for p in table.kernels["fast"].accepts if p.key == "accepts.m.max"]
        return order(table), bounds, len(table.denials), set(table.platforms["cuda"].architectures)

    assert facts(laid_over(*files)[0]) == facts(laid_over(*DISJOINT)[0])


@pytest.mark.parametrize("text", DISJOINT)
def test_an_override_applied_twice_is_applied_once(text):
    (once, before), twice = laid_over(text), laid_over(text, text)
    assert once is not None
    assert twice[0] is not None
    assert set(codes(twice[1])) - set(codes(before)) == {"KT405"}
    assert order(twice[0]) == order(once)
    assert [p.key for p in twice[0].kernels["fast"].accepts] == [p.key for p in once.kernels["fast"].accepts]
    assert len(twice[0].denials) == len(once.denials)


def test_package_needs_carry_their_bounds():
    table, _ = laid_over('kernels: {fast: {needs: {packages: {torch: ">=2.12"}}}}\n')
    assert table is not None
    (need,) = table.kernels["fast"].needs
    assert need == Needs("needs.packages", "torch", ">=2.12", need.mark)
