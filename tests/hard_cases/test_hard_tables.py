"""Group T: tables that can be read and are wrong; docs/hard-cases.md says which cases other files hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hard_questions import SMALL, SMALL_FILE, ask, changed, findings_of
from hypothesis import given
from hypothesis import strategies as st

import kerneltable
from kerneltable.model import Mark, Problem, Range
from kerneltable.select import device, select
from kerneltable.select.lint import prove
from kerneltable.select.predicates import check
from kerneltable.table import load_table
from kerneltable.table.load import read

ROUTE = "    cuda: [fast, reference]"
FAST_CHIPS = 'capability: {min: "9.0", max: "12.9"}'


def codes_of(folder, old: str, new: str) -> list[str]:
    return ask(folder, changed(old, new))[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("platforms:\n", "platform: {}\nplatforms:\n"),
        ("    kind: native\n", "    kind: native\n    Kind: native\n"),
        ("{multiple_of: 16}", "{multiple_of: 16, multipleof: 8}"),
        ("shared_memory_kib: 163", "shared_memory_kb: 163"),
        ("weight_scale: {required", "weight_scale: {requried: true, required"),
    ],
)
def test_t01_an_unknown_key_is_refused_anywhere(tmp_path, old, new):
    assert "KT201" in codes_of(tmp_path, old, new)


def test_t02_a_kernel_listed_but_not_defined_is_an_error_and_one_defined_but_not_listed_a_warning(tmp_path):
    assert codes_of(tmp_path, ROUTE, "    cuda: [fast, missing, reference]") == ["KT301"]
    table, codes = ask(tmp_path, changed(ROUTE, "    cuda: [reference]"))
    assert table is not None  # and `check --fail-on-warn` exits 1
    assert codes == ["KT315"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (ROUTE, "    cuda: [fast, fast, reference]", "KT314"),
        ("output: [bf16]", "output: [bf16, bf16]", "KT208"),
        ("output: [bf16]", "output: [bf16], bias: [true, true]", "KT208"),
        ("output: [bf16]", "output: [bf16], bias: [true, 1]", "KT203"),
        ("  reference:\n    sum", "  fast: {}\n  reference:\n    sum", "KT104"),
    ],
)
def test_t03_the_same_thing_twice_in_a_list_or_section_is_refused(tmp_path, old, new, code):
    table, codes = ask(tmp_path, changed(old, new))
    assert code in codes
    assert table is None or code == "KT314"


def test_t05_parameters_are_checked_for_kernels_that_cannot_run_here_too(tmp_path):
    """The row `fast` runs on CUDA alone; its constructor is read, not called."""
    file = tmp_path / "t.yaml"
    file.write_text(SMALL)
    full = {"weight": True, "weight_scale": True, "input_scale": False}
    for taken, wanted in (
        ({"weight": True, "weight_scale": True}, []),
        ({"weight": True}, ["KT321"]),
        ({"weight": True, "weight_scale": True, "extra": True}, ["KT322"]),
        ({}, ["KT321", "KT321"]),
    ):
        _, findings = read(file, (), signatures={"fast": taken, "reference": full})
        assert [finding.code for finding in findings] == wanted


def test_t06_a_step_that_others_hide_is_found_with_the_one_that_hides_it(tmp_path):
    table, _ = ask(tmp_path, changed(ROUTE, "    cuda: [reference, fast]"))
    assert table is not None
    (hidden,) = [proof for proof in prove(table) if proof.code == "KT502"]
    assert "'fast'" in hidden.message
    assert "reference" in hidden.message
    table, _ = ask(tmp_path, SMALL)
    assert table is not None
    assert "KT502" not in {proof.code for proof in prove(table)}


CAPABILITY = st.tuples(st.integers(1, 30), st.integers(0, 12))


@given(low=CAPABILITY, high=CAPABILITY, found=CAPABILITY)
def test_t07_both_ends_of_a_range_are_included(low, high, found):
    at = Mark("t", 1, 1)
    for fact in (low, high, found):
        facts = {"capability": fact, "architecture": None}
        ends = (Range("runs_on.capability.min", low, None, at), Range("runs_on.capability.max", None, high, at))
        taken = [check("kernel", predicate, facts) is None for predicate in ends]
        assert taken == [fact >= low, fact <= high]


def test_t07_an_empty_range_is_refused_and_one_of_a_single_value_is_not(tmp_path):
    assert codes_of(tmp_path, FAST_CHIPS, 'capability: {min: "9.0", max: "8.9"}') == ["KT311"]
    assert codes_of(tmp_path, FAST_CHIPS, 'capability: {min: "9.0", max: "9.0"}') == []


def test_t08_an_open_range_is_for_portable_code_alone(tmp_path):
    assert codes_of(tmp_path, FAST_CHIPS, 'capability: {min: "9.0"}') == ["KT313"]
    table, codes = ask(tmp_path, changed(FAST_CHIPS, 'capability: {min: "9.0"}, portable: true'))
    assert codes == []
    assert table is not None


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("{min: 128, max: 64}", "KT311"),
        ("{multiple_of: 0}", "KT206"),
        ("{min: -1}", "KT206"),
        ("{max: -5}", "KT206"),
        ("{multiple_of: 128, min: 129, max: 255}", "KT312"),
    ],
)
def test_t09_limits_that_contradict_each_other_are_refused(tmp_path, limit, code):
    assert codes_of(tmp_path, "k: {multiple_of: 128, min: 128}", f"k: {limit}") == [code]


def test_t11_a_platform_that_is_not_in_the_table_is_named_and_no_key_error(tmp_path):
    table, _ = ask(tmp_path, SMALL)
    assert table is not None
    with pytest.raises(kerneltable.ProblemError, match="xpu"):
        device("xpu:bmg", table)
    where = kerneltable.Device("xpu", None, "a chip")
    answer = select(table, where, Problem("fp8_w8a8", n=16, k=128))
    assert answer.kernel is None
    assert "'xpu'" in answer.notes[0]


def test_t12_an_override_that_leaves_a_route_without_a_kernel_must_say_so(tmp_path):
    off = "disable: [{kernel: fast, reason: x}, {kernel: reference, reason: x}]\n"
    assert set(ask(tmp_path, None, "override: 1\n" + off)[1]) == {"KT408"}
    table, codes = ask(tmp_path, None, "override: 1\nallow_empty: true\n" + off)
    assert codes == []
    assert table is not None
    answer = select(table, device("h200", table), Problem("fp8_w8a8", n=16, k=128))
    assert answer.kernel is None
    assert [c.refusals[0].predicate for c in answer.candidates] == ["disable", "disable"]


@pytest.mark.parametrize(
    ("text", "code", "nearest"),
    [
        ("disable: [{kernel: fasst, reason: x}]", "KT301", "fast"),
        ("routes: {fp8_w8a9: {cuda: {prefer: fast}}}", "KT302", "fp8_w8a8"),
        ("routes: {fp8_w8a8: {cude: {prefer: fast}}}", "KT303", "cuda"),
        ("routes: {fp8_w8a8: {cuda: {prefer: referense}}}", "KT301", "reference"),
        ("kernels: {fats: {accepts: {m: {max: 1}}}}", "KT301", "fast"),
    ],
)
def test_t13_an_override_that_names_something_unknown_is_refused_with_the_nearest_name(tmp_path, text, code, nearest):
    assert ask(tmp_path, None, f"override: 1\n{text}\n") == (None, [code])
    _, findings = read(SMALL_FILE, [("a.yaml", f"override: 1\n{text}\n")])
    assert nearest in findings[0].help


def test_t14_of_two_overrides_the_later_argument_wins_and_the_selection_shows_its_file(tmp_path):
    first = "override: 1\nroutes: {fp8_w8a8: {cuda: {prefer: reference}}}\n"
    second = "override: 1\nroutes: {fp8_w8a8: {cuda: {prefer: fast}}}\n"
    for order, wanted in (((first, second), "fast"), ((second, first), "reference")):
        table, _ = ask(tmp_path, None, *order)
        assert table is not None
        answer = select(table, device("h200", table), Problem("fp8_w8a8", n=16, k=128))
        assert answer.kernel == wanted
        assert answer.candidates[0].where.file == "b.yaml"


def test_t15_one_override_may_remove_and_reorder_and_says_no_to_both_of_the_same(tmp_path):
    text = "override: 1\nroutes: {fp8_w8a8: {cuda: {order: %s}}}\n"
    table, _ = ask(tmp_path, None, text % "{remove: [fast], prepend: [reference]}")
    assert table is not None
    assert [step.kernel for step in table.routes["fp8_w8a8", "cuda"].steps] == ["reference"]
    assert ask(tmp_path, None, text % "{replace: [reference], remove: [fast]}") == (None, ["KT402"])


def test_t17_a_required_kernel_that_cannot_run_is_no_kernel_and_a_preferred_one_falls_back_with_a_note(tmp_path):
    asked = Problem("fp8_w8a8", n=15, k=128)
    for verb, chosen in (("require", None), ("prefer", "reference")):
        table, _ = ask(tmp_path, None, f"override: 1\nroutes: {{fp8_w8a8: {{cuda: {{{verb}: fast}}}}}}\n")
        assert table is not None
        answer = select(table, device("h200", table), asked)
        assert answer.kernel == chosen
        assert "'fast'" in answer.notes[0]


def test_t18_no_environment_variable_decides_and_one_that_looks_so_is_named(tmp_path):
    """A variable would be a layer that nobody sees; what is set is said to have no effect."""
    command = [
        sys.executable,
        "-m",
        "kerneltable.cli",
        "select",
        "fp8_w8a8",
        "--device",
        "h200",
        "--n",
        "16",
        "--k",
        "128",
    ]
    home = {"PYTHONPATH": str(Path(kerneltable.__file__).parent.parent)}
    plain = subprocess.run(command, env=home, capture_output=True, text=True, check=True)
    named = {"KERNELTABLE_KERNEL": "no_such_kernel", "KERNELTABLE_OVERRIDE": "/nowhere.yaml:"}
    told = subprocess.run(command, env={**home, **named}, capture_output=True, text=True, check=True)
    assert told.stdout == plain.stdout
    assert plain.stderr == ""
    assert all(name in told.stderr for name in named)


@pytest.mark.parametrize(("version", "code"), [("2", "KT210"), ("0", "KT210"), ("99", "KT210"), ('"1"', "KT203")])
def test_t19_a_table_of_another_version_is_refused(tmp_path, version, code):
    table, codes = ask(tmp_path, changed("table: 1", f"table: {version}"))
    assert table is None
    assert code in codes
    assert ask(tmp_path, None, f"override: {version}\n")[0] is None


def test_t21_the_table_comes_with_the_package_and_not_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "dispatch.yaml").write_text("table: [")
    monkeypatch.chdir(tmp_path)
    assert load_table().routes
    assert findings_of(tmp_path, "table: [")
