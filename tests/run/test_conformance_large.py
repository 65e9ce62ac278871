"""Sizes beyond 2^31 elements: which ones a row gets, which rows of the result are checked, and what that finds.

The checks run here at small sizes with an overflow placed within them; the sizes themselves need a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kerneltable.cli import main
from kerneltable.kernels import reference, registry
from kerneltable.model import Device, Problem, Table
from kerneltable.run.checks import conformance_large as large
from kerneltable.run.checks.conformance_cases import Case, Conformance, plan_cases, plan_large
from kerneltable.select import complete
from kerneltable.table import load_table

H200 = Device("cuda", "sm90", capability=(9, 0), packages={"torch": None, "triton": None}, assume_all=True)
OVERFLOW = 2**14


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table()


def small(table: Table, **details: Any) -> Problem:
    """m * n and m * k lie well beyond OVERFLOW."""
    scheme = table.schemes[details.pop("scheme", "fp8_block_w8a8")]
    return complete(scheme, Problem(scheme.name, m=300, n=96, k=128, bias=True, **details))


def judged(
    table: Table, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[torch.Tensor], None], **details: Any
) -> Case:
    """The case of a reference kernel whose result goes through `wrong`."""

    class Wrong(reference.Kernel):
        def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            out: torch.Tensor = super().__call__(x, bias)
            wrong(out)
            return out

    monkeypatch.setattr(registry, "load", lambda kernel: Wrong)
    problem = small(table, **details)
    return large.run_large(table, table.kernels["reference"], problem, "cpu", 1, (OVERFLOW,))


@pytest.mark.parametrize(
    "details", [{}, {"scheme": "fp8_w8a8", "input_granularity": "tensor"}, {"scheme": "w8a16_fp8"}, {"scheme": "mxfp8"}]
)
def test_a_right_kernel_has_no_fault(table: Table, monkeypatch: pytest.MonkeyPatch, details: dict[str, str]) -> None:
    case = judged(table, monkeypatch, lambda out: None, **details)
    assert case.faults == ()
    assert case.large
    assert 0 < case.error_over_bound <= 1


def turned_round(out: torch.Tensor) -> None:
    """What an offset that overflows does: results beyond it land at the start, and the end stays as it was."""
    flat = out.view(-1)
    flat[: flat.numel() - OVERFLOW] = flat[OVERFLOW:].clone()
    flat[OVERFLOW:] = 0


def one_element_after_the_overflow(out: torch.Tensor) -> None:
    out.view(-1)[OVERFLOW] += 100


def last_element(out: torch.Tensor) -> None:
    out[-1, -1] += 100


@pytest.mark.parametrize("wrong", [turned_round, one_element_after_the_overflow, last_element])
def test_numbers_that_are_wrong_about_the_overflow_or_at_the_end_are_found(
    table: Table, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    assert any("times its bound" in fault for fault in judged(table, monkeypatch, wrong).faults)


def test_an_element_that_was_not_written_is_found_wherever_it_is(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked = next(row for row in range(300) if row not in large.rows_to_check(small(table), (OVERFLOW,)))

    def leave_one_out(out: torch.Tensor) -> None:
        out[unchecked, 7] = torch.nan

    assert "result: 1 of 28800 elements are NaN" in judged(table, monkeypatch, leave_one_out).faults


def test_what_a_kernel_raises_is_a_fault(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(out: torch.Tensor) -> None:
        raise RuntimeError("offset 2147483648 does not fit into int")

    case = judged(table, monkeypatch, refuse)
    assert case.faults == ("raised RuntimeError: offset 2147483648 does not fit into int",)


def test_checked_rows_reach_from_the_first_to_the_last_and_stand_about_each_overflow() -> None:
    sizes = {what: Problem("s", m=m, n=n, k=k) for what, (m, n, k) in zip("oiw", large.SHAPES, strict=True)}
    out, given, weight = (large.rows_to_check(sizes[what]) for what in "oiw")
    assert {0, 69_999, 2**31 // 32_768 - 1, 2**31 // 32_768, 2**31 // 32_768 + 1} <= set(out)
    assert {0, 1_799_999, 2**31 // 1_280, 2**31 // 1_280 + 1, 2**30 // 1_280} <= set(given)
    assert weight == list(range(16))
    assert all(rows == sorted(set(rows)) and len(rows) < 64 for rows in (out, given, weight))


def test_each_large_shape_has_one_tensor_beyond_the_range_of_32_bits() -> None:
    beyond = [(m * n > 2**31, m * k > 2**31, n * k > 2**31) for m, n, k in large.SHAPES]
    assert beyond == [(True, False, False), (False, True, False), (False, False, True)]


@pytest.mark.parametrize("kernel", sorted(registry.ids()))
def test_every_row_of_the_h200_gets_all_three_or_says_why_not(table: Table, kernel: str) -> None:
    found = Conformance(kernel)
    problems = plan_large(table, table.kernels[kernel], H200, found, large.SHAPES)
    runs = not plan_cases(table, table.kernels[kernel], H200, shapes=1)[1].refused
    assert len(problems) + sum(found.skipped.values()) == (3 if runs else 0)
    assert all("accepts." in reason for reason in found.skipped)


def test_memory_that_is_short_is_said_in_numbers() -> None:
    problem = Problem("s", m=70_000, n=32_768, k=512)
    assert large.lack_of_memory(problem, 100 * 2**30) is None
    lack = large.lack_of_memory(problem, 40 * 2**30)
    assert lack == "beyond 2^31 elements: wants 60 GiB of free memory, found 40"


@pytest.mark.parametrize(("arguments", "skipped"), [((), 3), (("--large", "no"), 0)])
def test_a_cpu_says_that_it_runs_none(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], skipped: int
) -> None:
    small_run = ["conformance", "--kernel", "reference", "--shapes", "4", "--max-elements", "4096"]
    assert main([*small_run, "--format", "json", *arguments]) == 0
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["skipped"].get("beyond 2^31 elements: a CPU runs none", 0) == skipped
    assert not any(case["large"] for case in kernel["cases"])


def test_a_kernel_whose_time_is_over_begins_no_further_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--kernel", "reference", "--shapes", "6", "--seconds", "1e-9", "--large", "no"]) == 2
    printed = capsys.readouterr()
    assert "none   0 cases" in printed.out
    assert "skipped 6: not begun within" in printed.out
    assert "reference" in printed.err
