"""kerneltable conformance as a command: exit codes and JSON."""

from __future__ import annotations

import json

import pytest

from kerneltable.cli import main
from kerneltable.kernels import reference, registry

SMALL = ["--shapes", "6", "--max-elements", "65536"]


def test_a_sound_kernel_exits_0_and_answers_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--kernel", "reference", "--format", "json", *SMALL]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert shown.err == ""
    assert answer["format"] == 1
    (kernel,) = answer["kernels"]
    assert kernel["kernel"] == "reference"
    assert kernel["cases"] == 6
    assert 0 < kernel["worst_error_over_bound"] <= 1


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
