"""kerneltable conformance as a command: exit codes and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kerneltable.cli import conformance, main
from kerneltable.kernels import reference, registry
from kerneltable.model import Problem
from kerneltable.run.checks.conformance_cases import Case, Conformance

SMALL = ["--shapes", "6", "--max-elements", "65536"]


def test_a_sound_kernel_exits_0_and_answers_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--kernel", "reference", "--format", "json", *SMALL]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert shown.err == ""
    assert answer["format"] == 1
    (kernel,) = answer["kernels"]
    assert kernel["kernel"] == "reference"
    assert len(kernel["cases"]) == 6
    assert 0 < kernel["worst_error_over_bound"] <= 1
    assert kernel["worst_error_over_bound"] == max(case["error_over_bound"] for case in kernel["cases"])
    assert all(case["problem"] and not case["faults"] and not case["large"] for case in kernel["cases"])


def test_a_wrong_kernel_exits_1_and_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(reference.Kernel):
        def __call__(self, x, bias):  # type: ignore[no-untyped-def]
            return super().__call__(x, bias) * 2

    monkeypatch.setattr(registry, "load", lambda kernel: Doubled)
    assert main(["conformance", "--kernel", "reference", *SMALL]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_unknown_kernel_exits_2_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--kernel", "referense"]) == 2
    assert "reference" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "least"), [("--shapes", 0), ("--max-elements", 1)])
def test_less_than_nothing_is_refused(capsys: pytest.CaptureFixture[str], option: str, least: int) -> None:
    assert main(["conformance", option, str(least - 1)]) == 2
    assert f"argument {option}: a whole number from {least} to 2147483647 was wanted" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e400", "inf", "2e6", "soon", ""])
@pytest.mark.parametrize("argv", [("conformance", "--seconds"), ("check", "--canary", "--canary-seconds")])
def test_a_time_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], seconds: str
) -> None:
    assert main([*argv, seconds]) == 2
    assert f"argument {argv[-1]}: seconds above 0 and at most 1000000 were wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("--kernel", "reference", "--shapes", "1", "--seconds", "1e-9"),
            "'reference': a case was wanted; none was run",
        ),
        (("--kernel", "hopper_fp8_block"), "'hopper_fp8_block': a case was wanted; none was run: runs_on: "),
        (("--kernel", "reference", "--large", "only"), "beyond 2^31 elements: a CPU runs none"),
        (("--large", "only"), ": a case was wanted; none was run: "),
    ],
)
def test_a_kernel_of_which_nothing_was_run_is_no_answer(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert main(["conformance", "--format", "json", *argv]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not any(kernel["cases"] for kernel in json.loads(shown.out)["kernels"])


def test_large_cases_alone_are_all_listed_with_their_sizes_and_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    details = {"weight_granularity": "block", "weight_block": (128, 128), "weight_scale": "f32"}
    sizes = ((70_000, 32_768, 512), (16, 300_032, 8_192))
    problems = [Problem("fp8_block_w8a8", m=m, n=n, k=k, **details) for m, n, k in sizes]  # type: ignore[arg-type]
    cases = [
        Case(problems[0], 0.25, (), large=True),
        Case(problems[1], float("inf"), ("raised RuntimeError: no",), large=True),
    ]
    monkeypatch.setattr(conformance, "_large", lambda *given: [lambda case=case: case for case in cases])
    assert main(["conformance", "--kernel", "reference", "--large", "only", "--format", "json"]) == 1
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    assert (kernel["kernel"], kernel["sound"]) == ("reference", False)
    assert [(case["error_over_bound"], case["large"]) for case in kernel["cases"]] == [(0.25, True), (None, True)]
    for case, (m, n, k) in zip(kernel["cases"], sizes, strict=True):
        assert case["problem"].startswith(f"fp8_block_w8a8 m={m} n={n} k={k} bf16->bf16")
    assert [case["faults"] for case in kernel["cases"]] == [[], ["raised RuntimeError: no"]]


def test_text_says_of_each_kernel_before_the_next_one_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def measure(args, table, name, device):  # type: ignore[no-untyped-def]
        told.append(capsys.readouterr().out)
        return Conformance(name, cases=[Case(Problem("mxfp8", n=1, k=1), 0.5, ())])

    monkeypatch.setattr(conformance, "_measure_kernel", measure)
    assert main(["conformance", "--kernel", "reference", "--kernel", "cpu_fp8", "--large", "only"]) == 0
    assert told[0].startswith("device: cpu")
    assert told[1].startswith("reference ")
    assert capsys.readouterr().out.startswith("cpu_fp8 ")


def test_a_run_that_is_ended_early_leaves_the_kernels_that_it_was_through_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, seen = tmp_path / "kept.json", []

    def measure(args, table, name, device):  # type: ignore[no-untyped-def]
        seen.append(json.loads(kept.read_text()))
        if name == "triton_w8a16":
            raise KeyboardInterrupt
        return Conformance(name)

    monkeypatch.setattr(conformance, "_measure_kernel", measure)
    asked = [part for name in ("reference", "cpu_fp8", "triton_w8a16") for part in ("--kernel", name)]
    assert main(["conformance", *asked, "-o", str(kept)]) == 130
    answer = json.loads(kept.read_text())
    assert [one["kernel"] for one in answer["kernels"]] == ["reference", "cpu_fp8"]
    assert not answer["complete"]
    assert [len(one["kernels"]) for one in seen] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [kept]


def test_a_run_to_the_end_is_complete_in_the_file_and_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    assert main(["conformance", "--kernel", "reference", "--format", "json", "-o", str(kept), *SMALL]) == 0
    answer = json.loads(kept.read_text())
    assert answer["complete"]
    assert answer == json.loads(capsys.readouterr().out)


def test_a_file_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "_measure_kernel", lambda *_: pytest.fail("it ran"))
    kept = tmp_path / "nowhere" / "kept.json"
    assert main(["conformance", "--kernel", "reference", "-o", str(kept)]) == 2
    assert capsys.readouterr().err == f"kerneltable: {kept}: No such file or directory\n"
