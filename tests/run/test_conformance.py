"""The conformance run: it finds what a wrong kernel does, and reads its problems off the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kerneltable.cli import conformance as command
from kerneltable.kernels import reference, registry
from kerneltable.model import Device, Problem, Table
from kerneltable.run import shapes
from kerneltable.run.checks import conformance
from kerneltable.run.checks.conformance_cases import Case, Conformance, outside_problems, plan_cases
from kerneltable.run.layer_data import EXACT_LIMIT, exact_layer, random_layer
from kerneltable.run.oracle import reference64
from kerneltable.run.probe import current_device
from kerneltable.select import complete, refusals
from kerneltable.table import load_table

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "test_shapes.json").read_text())
CPU = Device("cpu", "x86-64-v3", packages={"torch": None, "triton": None})
H200 = Device("cuda", "sm90", capability=(9, 0), packages={"torch": None, "triton": None}, assume_all=True)


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table()


def problem_of(table: Table, **sizes: Any) -> Problem:
    scheme = table.schemes["fp8_block_w8a8"]
    return complete(scheme, Problem(scheme.name, **{"m": 5, "n": 48, "k": 300, **sizes}))


def judged(table: Table, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any, Any, Any], Any]) -> Case:
    """The case of a reference kernel whose call is replaced by wrong(kernel, x, bias)."""

    class Wrong(reference.Kernel):
        def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            result: torch.Tensor = wrong(super().__call__, x, bias)
            return result

    monkeypatch.setattr(registry, "load", lambda kernel: Wrong)
    return conformance.run_case(table, table.kernels["reference"], problem_of(table, bias=True), "cpu", 1)


def test_a_right_kernel_has_no_fault(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    case = judged(table, monkeypatch, lambda call, x, bias: call(x, bias))
    assert case.faults == ()
    assert 0 < case.error_over_bound <= 1


def spoil_last_column(call: Any, x: Any, bias: Any) -> Any:
    out = call(x, bias)
    out[:, -1] = 0
    return out


def read_past_the_row(call: Any, x: Any, bias: Any) -> Any:
    beyond = x.as_strided((x.shape[0], 1), (x.stride(0), 1), x.shape[1])
    return call(x, bias) + beyond


def change_x(call: Any, x: Any, bias: Any) -> Any:
    out = call(x, bias)
    x[0, 0] += 1
    return out


def raise_raw(call: Any, x: Any, bias: Any) -> Any:
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (spoil_last_column, "times its bound"),
        (spoil_last_column, "integer-exact data: "),
        (lambda call, x, bias: call(x, bias + bias), "times its bound"),
        (lambda call, x, bias: call(x, None), "times its bound"),
        (read_past_the_row, "error inf times its bound"),
        (lambda call, x, bias: call(x, bias).float(), "result: wanted"),
        (lambda call, x, bias: call(x, bias)[:-1], "result: wanted"),
        (lambda call, x, bias: call(x, bias).t().contiguous().t(), "result: wanted"),
        (lambda call, x, bias: call(x, bias) + torch.randn(48).bfloat16() * 2**-9, "two runs differ"),
        (change_x, "x: changed by the kernel"),
        (raise_raw, "raised IndexError: list index out of range"),
    ],
)
def test_what_a_wrong_kernel_does_is_named(
    table: Table, monkeypatch: pytest.MonkeyPatch, wrong: Any, fault: str
) -> None:
    faults = judged(table, monkeypatch, wrong).faults
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize("kernel", ["reference", "torch_mxfp8_emulation"])
def test_kernels_of_a_cpu_conform(table: Table, kernel: str) -> None:
    row = table.kernels[kernel]
    problems, found = plan_cases(table, row, CPU, shapes=10, max_elements=2**17)
    assert len(problems) == 10
    found.cases += [conformance.run_case(table, row, problem, "cpu", i) for i, problem in enumerate(problems)]
    assert found.sound, [case.faults for case in found.cases]
    assert found.worst <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", sorted(registry.ids()))
def test_kernels_of_this_gpu_conform(table: Table, kernel: str) -> None:
    row = table.kernels[kernel]
    problems, found = plan_cases(table, row, current_device(table), shapes=8, max_elements=2**24)
    found.cases += [conformance.run_case(table, row, problem, "cuda", i) for i, problem in enumerate(problems)]
    assert found.sound, [case.faults for case in found.cases]


def test_a_kernel_of_another_platform_is_not_run_and_says_why(table: Table) -> None:
    problems, found = plan_cases(table, table.kernels["torch_scaled_mm_block"], CPU)
    assert problems == []
    assert any("runs_on" in text for text in found.refused)
    assert found.sound


@pytest.mark.parametrize("kernel", ["torch_scaled_mm_block", "torch_scaled_mm_rowwise", "triton_w8a16", "reference"])
def test_every_planned_problem_is_accepted_and_every_outside_one_refused(table: Table, kernel: str) -> None:
    row = table.kernels[kernel]
    problems, found = plan_cases(table, row, H200, shapes=0)
    assert len(problems) > 20
    assert len(set(problems)) == len(problems)
    assert not any(refusals(table, kernel, H200, problem) for problem in problems)
    assert found.admitted == ()
    assert found.outside[0] == found.outside[1]
    assert {problem.bias for problem in problems} == {True, False}
    assert {problem.input for problem in problems} == {"bf16", "f16", "f32"}


def test_the_edges_of_a_row_are_always_among_the_shapes(table: Table) -> None:
    row = table.kernels["torch_scaled_mm_block"]
    problems, _ = plan_cases(table, row, H200, shapes=6)
    assert [(p.m, p.n, p.k) for p in problems[:4]] == [(1, 16, 128), (2, 32, 128), (3, 16, 256), (17, 64, 768)]
    assert len(problems) == 6


def test_outside_problems_break_each_limit_of_the_row(table: Table) -> None:
    row = table.kernels["torch_scaled_mm_block"]
    inside = complete(table.schemes["fp8_block_w8a8"], Problem("fp8_block_w8a8", n=256, k=256, m=16))
    outside = list(outside_problems(table, row, inside))
    assert {(p.n, p.k) for p in outside} >= {(257, 256), (15, 256), (256, 257), (256, 127)}
    assert {p.scheme for p in outside} == set(table.schemes)
    assert (64, 32) in {p.weight_block for p in outside}


def test_shapes_left_out_are_counted_by_reason(table: Table) -> None:
    problems, found = plan_cases(table, table.kernels["torch_scaled_mm_block"], H200, shapes=12, max_elements=2**22)
    every = len({*shapes.row_edges(table.kernels["torch_scaled_mm_block"]), *shapes.field_shapes()})
    assert len(problems) + sum(found.skipped.values()) == every
    assert any(reason.startswith("more than 4194304 elements") for reason in found.skipped)
    assert any("multiple_of" in reason for reason in found.skipped)


def test_a_row_that_admits_what_it_must_not_is_unsound() -> None:
    assert Conformance("k").sound
    assert not Conformance("k", admitted=("Problem(...)",)).sound
    wide = Problem("s", n=1, k=1)
    assert not Conformance("k", cases=[Case(wide, 0.5, ("result: two runs differ",))]).sound


def test_field_shapes_are_those_of_the_data_file() -> None:
    deepgemm, vllm, fuzz = SHAPES["deepgemm_fp8"], SHAPES["vllm_block_fp8"], SHAPES["flashinfer_fuzz"]
    marlin = SHAPES["vllm_marlin_padding"]
    assert [list(pair) for pair in shapes.DEEPGEMM_NK] == deepgemm["NK"]
    assert list(shapes.DEEPGEMM_M) == deepgemm["M_fwd"]
    assert [list(values) for values in (shapes.VLLM_BLOCK_M, shapes.VLLM_BLOCK_N, shapes.VLLM_BLOCK_K)] == [
        vllm["M"],
        vllm["N"],
        vllm["K"],
    ]
    assert [list(pair) for pair in shapes.MARLIN_NK] == marlin["odd_[N,K]"] + marlin["aligned_[N,K]"]
    assert list(shapes.SMALL_M) == SHAPES["vllm_mxfp8_small_m"]["M"]
    assert [list(values) for values in (shapes.FUZZ_M, shapes.FUZZ_N, shapes.FUZZ_K)] == [
        fuzz["M"],
        fuzz["N"],
        fuzz["K"],
    ]


def test_every_size_of_the_data_file_occurs() -> None:
    found = list(shapes.field_shapes())
    assert len(found) == len(set(found))
    for position, name in enumerate("MNK"):
        for suite in ("vllm_block_fp8", "flashinfer_fuzz"):
            assert {shape[position] for shape in found} >= set(SHAPES[suite][name])


@pytest.mark.parametrize("k", [32, 640, 7168])
@pytest.mark.parametrize("scheme", ["fp8_block_w8a8", "fp8_w8a8", "mxfp8"])
def test_exact_layers_have_small_sums_that_are_not_all_zero(table: Table, k: int, scheme: str) -> None:
    problem = complete(table.schemes[scheme], Problem(scheme, m=4, n=32, k=k))
    data = exact_layer(problem, torch.Generator().manual_seed(k))
    ref, magnitude = reference64(problem, data.tensors, data.x, data.bias, True)
    plain, _ = reference64(problem, data.tensors, data.x, data.bias, False)
    assert torch.equal(ref, plain)
    assert torch.equal(ref, ref.round())
    assert magnitude.max() < EXACT_LIMIT
    assert ref.count_nonzero() > ref.numel() // 2


def test_layers_of_one_seed_are_equal_and_of_two_are_not(table: Table) -> None:
    made = [random_layer(problem_of(table), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0].x, made[1].x)
    assert not torch.equal(made[0].x, made[2].x)


def test_the_text_says_what_failed_and_what_was_left_out() -> None:
    found = Conformance("some_kernel", outside=(3, 3))
    found.skipped["accepts.k.multiple_of: wanted multiple of 32"] = 9
    found.cases += [Case(Problem("s", m=1, n=2, k=3), 7.0, ("random data: error 7 times its bound",))] * 7
    text = "\n".join(command.as_text(found))
    assert "FAIL   7 cases, worst error over bound 7.000, 3 of 3 problems outside the row refused" in text
    assert "    worst: s m=1 n=2 k=3 " in text
    assert "skipped 9: accepts.k.multiple_of" in text
    assert "and 2 faulty cases more" in text
    answer = command.as_json(found)
    assert answer["sound"] is False
    assert [case["faults"] for case in answer["cases"]] == [["random data: error 7 times its bound"]] * 7
    found.cases.append(Case(Problem("s", m=1, n=2, k=3), float("inf"), ("raised",)))
    assert command.as_json(found)["worst_error_over_bound"] is None
