"""`explain` and `select`: answers, forced kernels, questions that cannot be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import ASKED, Answer, Ask, override

from kerneltable.table import load_table


def test_explain_names_the_winner_and_every_other_candidate(ask: Ask) -> None:
    answer = ask("explain", "fp8_block_w8a8", "--device", "a100", "--n", "4096", "--k", "4096")
    table = load_table()
    assert (answer.code, answer.err) == (0, "")
    for step in table.routes["fp8_block_w8a8", "cuda"].steps:
        assert step.kernel in answer.out
    assert "chosen   triton_w8a16" in answer.out
    assert "wanted at least 8.9, found 8.0 (sm80) (dispatch.yaml:" in answer.out


def test_explain_json_has_the_contract(ask: Ask) -> None:
    found = ask("explain", "fp8_block_w8a8", "--device", "a100", "--n", "4096", "--k", "100", "--format", "json").json
    assert set(found) == {"format", "table", "problem", "device", "chosen", "status", "candidates", "plan", "notes"}
    assert found["chosen"] == "triton_w8a16"
    for candidate in found["candidates"]:
        assert set(candidate) == {"kernel", "verdict", "refusals"}
        assert candidate["verdict"] in ("chosen", "refused", "later")
        assert bool(candidate["refusals"]) == (candidate["verdict"] == "refused")
        for refusal in candidate["refusals"]:
            assert set(refusal) == {"predicate", "wanted", "found", "where"}
            file, line, column = refusal["where"].rsplit(":", 2)
            assert (file, line.isdigit(), column.isdigit()) == ("dispatch.yaml", True, True)


def test_verbose_explains_with_every_refusal(ask: Ask) -> None:
    argv = ("explain", "fp8_w8a8", "--device", "a100", "--n", "4096", "--k", "4096")
    assert ask(*argv).out.count("wanted") < ask(*argv, "-v").out.count("wanted")


def test_every_detail_of_the_question_reaches_the_problem(ask: Ask) -> None:
    details = ("--m", "7", "--input", "f16", "--output", "f32", "--bias", "--weight-granularity", "block")
    more = (
        "--weight-block",
        "64x32",
        "--weight-scale",
        "e8m0",
        "--input-granularity",
        "block",
        "--input-scaling",
        "dynamic",
        "--model",
        "acme/M-FP8",
    )
    problem = ask("explain", *ASKED, *details, *more, "--format", "json").json["problem"]
    assert problem == {
        "scheme": "fp8_block_w8a8", "n": 4096, "k": 4096, "m": 7, "input": "f16", "output": "f32", "bias": True,
        "weight_granularity": "block", "weight_block": "64x32", "weight_scale": "e8m0",
        "input_granularity": "block", "input_scaling": "dynamic", "model": "acme/M-FP8",
    }  # fmt: skip


def test_the_output_dtype_follows_the_input(ask: Ask) -> None:
    assert ask("explain", *ASKED, "--input", "f16", "--format", "json").json["problem"]["output"] == "f16"


def test_select_prints_the_kernel_alone(ask: Ask) -> None:
    assert ask("select", *ASKED) == Answer(0, "hopper_fp8_block\n", "")
    assert ask("select", *ASKED, "--format", "json").json["chosen"] == "hopper_fp8_block"


def test_no_kernel_is_exit_1(ask: Ask) -> None:
    forced = (*ASKED[:-1], "4000", "--require", "torch_scaled_mm_block")
    answer = ask("select", *forced)
    assert (answer.code, answer.out) == (1, "")
    assert "'torch_scaled_mm_block' is required (command line:1:" in answer.err
    assert ask("select", *forced, "--format", "json").json["chosen"] is None
    shown = ask("explain", *forced)
    assert (shown.code, shown.err) == (1, "")
    assert "accepts.k.multiple_of: wanted multiple of 128, found 4000" in shown.out
    assert "require: wanted torch_scaled_mm_block (required), found reference" in shown.out


def test_require_prefer_and_disable_are_the_last_layer(ask: Ask, tmp_path: Path) -> None:
    assert ask("select", *ASKED, "--require", "reference").out == "reference\n"
    assert ask("select", *ASKED, "--prefer", "triton_w8a16").out == "triton_w8a16\n"
    assert ask("select", *ASKED, "--disable", "hopper_fp8_block").out == "torch_scaled_mm_block\n"
    file = override(tmp_path, "override: 1\nroutes: {fp8_block_w8a8: {cuda: {prefer: reference}}}\n")
    assert ask("select", *ASKED, "-f", file).out == "reference\n"
    assert ask("select", *ASKED, "-f", file, "--prefer", "triton_w8a16").out == "triton_w8a16\n"


def test_disabling_what_no_step_of_the_route_takes_is_said(ask: Ask) -> None:
    answer = ask("select", *ASKED, "--disable", "cpu_fp8", "--disable", "reference")
    said = "--disable cpu_fp8: no step of the route of fp8_block_w8a8 on cuda, so it changes nothing; known: "
    assert (answer.code, answer.out) == (0, "hopper_fp8_block\n")
    assert answer.err.startswith(f"kerneltable: {said}")
    assert answer.err.count("\n") == 1


def test_disabling_every_kernel_is_no_kernel_with_the_reasons(ask: Ask) -> None:
    table = load_table()
    off = [a for step in table.routes["fp8_block_w8a8", "cuda"].steps for a in ("--disable", step.kernel)]
    answer = ask("explain", *ASKED, *off)
    assert answer.code == 1
    assert answer.out.count("disable: wanted not disabled, found switched off on the command line") == len(off) // 2


@pytest.mark.parametrize("option", ["--require", "--prefer", "--disable"])
@pytest.mark.parametrize("name", ["triton_w8a61", "../x", "a: b", "", "\u0430", "x\ny"])
def test_a_forced_kernel_that_does_not_exist_is_an_error(ask: Ask, option: str, name: str) -> None:
    answer = ask("select", *ASKED, option, name)
    assert (answer.code, answer.out) == (2, "")
    assert "command line:1:" in answer.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("fp8_blok_w8a8", *ASKED[1:]), "unknown scheme 'fp8_blok_w8a8'; did you mean 'fp8_block_w8a8'?"),
        ((*ASKED[:2], "h20o0", *ASKED[3:]), "unknown device 'h20o0'; did you mean 'h200'?"),
        ((*ASKED, "--with", "a>=2"), "comma list of NAME, NAME==VERSION or NAMESPACE::OP"),
        ((*ASKED, "--weight-scale", "f16"), "weight_scale must be one of f32, bf16, e8m0; found 'f16'"),
        ((*ASKED[:-1], "-1"), "argument --k"),
        ((*ASKED[:-1], "4096.0"), "a whole number from 0 to 2147483647 was wanted; found '4096.0'"),
        ((*ASKED[:-1], "99999999999999"), "a whole number from 0 to 2147483647 was wanted"),
        ((*ASKED, "--weight-block", "128"), "two numbers such as 128x128 were wanted; found '128'"),
        ((*ASKED, "--facts", "x.json"), "not allowed with argument --device"),
        ((*ASKED, "--table", "missing.yaml"), "missing.yaml:1:1: error[KT121]"),
        (("fp8_block_w8a8", "--facts", "missing.json", *ASKED[3:]), "missing.json: No such file or directory"),
        (("fp8_block_w8a8", "--facts", ".", *ASKED[3:]), ".: Is a directory"),
    ],
)
def test_a_question_that_cannot_be_asked_is_exit_2_on_stderr(ask: Ask, argv: tuple[str, ...], words: str) -> None:
    answer = ask("explain", *argv)
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ("vlm", "--with vlm: no row asks for this package, so it changes nothing; did you mean 'vllm'?"),
        ("vllm, zlib==1.2", "--with zlib==1.2: no row asks for this package, so it changes nothing; known: "),
        ("_C::gemm", "--with _C::gemm: no row asks for this op, so it changes nothing; "),
    ],
)
def test_what_no_row_asks_for_is_said_on_stderr(ask: Ask, packages: str, said: str) -> None:
    answer = ask("explain", *ASKED, "--with", packages)
    assert answer.code == 0
    assert answer.err.startswith(f"kerneltable: {said}")
    assert answer.err.count("\n") == 1
    one = ("--devices", "h200")
    assert [ask(c, *one, "--with", packages).err for c in ("lock", "matrix", "diff")] == [answer.err] * 3


def test_with_of_what_rows_ask_for_says_nothing(ask: Ask) -> None:
    known = "all", "vllm==0.21,Deep_GEMM,triton,torch,_xpu_C::fp8_gemm"
    assert {ask("select", *ASKED, "--with", packages).err for packages in known} == {""}


def test_with_adds_packages_and_ops(ask: Ask) -> None:
    found = ask("explain", *ASKED, "--with", "deep_gemm==2.1,_C::gemm", "--format", "json").json["device"]
    assert (found["packages"]["deep-gemm"], found["ops"], found["assume_all"]) == ("2.1", ["_C::gemm"], False)
    assert ask("explain", *ASKED, "--with", "all", "--format", "json").json["device"]["assume_all"] is True


@pytest.mark.parametrize("command", ["explain", "lock"])
def test_with_may_be_repeated_and_says_of_every_part_that_no_row_asks_for_it(ask: Ask, command: str) -> None:
    asked = ASKED if command == "explain" else ("--devices", "h200")
    answer = ask(command, *asked, "--with", "deep-gemm==2.1", "--with", "vllm==0.25,vlm", "--format", "json")
    device = answer.json["device"] if command == "explain" else answer.json["devices"]["h200"]
    assert (device["packages"]["deep-gemm"], device["packages"]["vllm"]) == ("2.1", "0.25")
    assert "--with vlm: no row asks for this package" in answer.err


@pytest.mark.parametrize("packages", [("--with", "all,torch==2.13"), ("--with", "all", "--with", "torch==2.13")])
def test_all_beside_packages_is_no_answer(ask: Ask, packages: tuple[str, ...]) -> None:
    answer = ask("explain", *ASKED, *packages)
    assert (answer.code, answer.out) == (2, "")
    assert "'all' was wanted alone, since it fits every version; found 'all,torch==2.13'" in answer.err


def test_an_unknown_chip_is_answered(ask: Ask) -> None:
    answer = ask("explain", "mxfp8", "--device", "cuda:13.0", "--n", "4096", "--k", "4096")
    assert answer.code == 0
    assert "unknown capability 13.0" in answer.out


def test_another_table_is_read(ask: Ask, tmp_path: Path) -> None:
    text = load_table().layers[0].text.replace("      - hopper_fp8_block\n", "", 1)
    file = override(tmp_path, text, "mine.yaml")
    assert ask("select", *ASKED, "--table", file).out == "torch_scaled_mm_block\n"


def test_a_run_elsewhere_is_no_verification_here(ask: Ask) -> None:
    question = ("fp8_w8a8", "--n", "4096", "--k", "4096", "--format", "json")
    assert ask("explain", *question, "--device", "h200").json["status"] == "verified"
    assert ask("explain", *question, "--device", "h100").json["status"] == "verified"
    assert ask("explain", *question, "--device", "a100").json["status"] == "unverified on sm80"
    assert ask("explain", *question, "--device", "cuda:13.0").json["status"] == "unverified on unknown capability 13.0"


def test_copies_and_promises_are_asked_for_on_the_command_line(ask: Ask) -> None:
    question = ("explain", "fp8_w8a8", "--device", "epyc-genoa", "--n", "256", "--k", "256", "--format", "json")
    free = ask(*question).json["plan"]
    assert (free["weight_copies"], free["demands"]) == (1, [])
    held = ask(*question, "--batch-invariant", "--deterministic", "--weight-copies", "0")
    assert held.code == 0
    assert (held.json["plan"]["weight_copies"], held.json["plan"]["demands"]) == (
        0,
        ["batch_invariant", "deterministic"],
    )
    refused = {c["kernel"]: [r["predicate"] for r in c["refusals"]] for c in held.json["candidates"]}
    assert refused["reference"] == ["plans.batch_invariant"]
    many = ask(*question, "--weight-copies", "17")
    assert many.code == 2
    assert "command line" in many.err
    assert "weight_copies" in many.err


def test_host_is_the_present_machine(ask: Ask) -> None:
    question = ("explain", "fp8_w8a8", "--n", "256", "--k", "256", "--format", "json")
    assert ask(*question, "--device", "host").json == ask(*question).json
    here = ask(*question).json["device"]
    matrix = ask("matrix", "--devices", "host,h200", "--format", "json").out
    assert here["architecture"] in matrix
