"""`check --deep`: constructors meet the smallest problem of their rows, and what does not compile is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kerneltable.kernels import registry
from kerneltable.model import MultipleOf, Problem, Table
from kerneltable.ops.settings import CompileSettings, activated
from kerneltable.run.checks import deep_code
from kerneltable.run.checks.building import Built, Outcome
from kerneltable.run.checks.deep import construct_all, meta_layer, smallest_problems
from kerneltable.select import complete, device, refusals
from kerneltable.table import load_table


@pytest.fixture(scope="module")
def shipped() -> Table:
    return load_table()


def alone(table: Table, kernel: str) -> Table:
    return replace(table, kernels={kernel: table.kernels[kernel]}, routes={}, denials=(), answers={})


def test_every_kernel_of_this_project_takes_its_own_row_or_says_what_it_misses(shipped: Table) -> None:
    found = {proof.path[1]: proof.code for proof in construct_all(shipped)}
    assert not {kernel for kernel, code in found.items() if code == "KT521"}
    assert {"reference", "triton_fp8_block", "triton_fp8_rowwise", "torch_mxfp8_emulation"}.isdisjoint(found)


def test_a_constructor_that_does_not_take_its_row_is_an_error(shipped: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def __init__(self, problem: Problem, *, weight: torch.Tensor) -> None:
            self.weight = weight

    monkeypatch.setattr(registry, "load", lambda _: Kernel)
    (proof,) = construct_all(alone(shipped, "reference"))
    assert proof.code == "KT521"
    assert "weight_scale" in proof.message


def test_a_package_that_is_missing_is_a_note(shipped: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str) -> Any:
        raise ImportError("no module named 'aiter'")

    monkeypatch.setattr(registry, "load", load)
    (proof,) = construct_all(alone(shipped, "reference"))
    assert (proof.code, "aiter" in proof.message) == ("KT520", True)


def test_the_smallest_problems_of_a_row_fit_it_and_have_tensors(shipped: Table) -> None:
    for kernel in shipped.kernels.values():
        problems = list(smallest_problems(shipped, kernel))
        assert problems, kernel.id
        for problem in problems:
            assert complete(shipped.schemes[problem.scheme], problem) == problem
            here = device("sm90", shipped)
            assert not [r for r in refusals(shipped, kernel.id, here, problem) if r.predicate.startswith("accepts")]
            assert meta_layer(shipped, problem)["weight"].shape == (problem.n, problem.k)


def test_a_row_that_no_route_lists_has_its_smallest_problem_too(shipped: Table) -> None:
    odd = MultipleOf("accepts.n.multiple_of", 37, shipped.kernels["reference"].mark)
    row = replace(shipped.kernels["reference"], id="odd", accepts=(odd,))
    assert {problem.n for problem in smallest_problems(shipped, row)} == {37}


def test_code_that_does_not_compile_is_an_error(shipped: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(jobs: Any, *_: Any) -> Any:
        return (Built(job, (Outcome(0, False, 0.1, "fp8_linear.cpp: expected ';'"),)) for job in jobs)

    monkeypatch.setattr(deep_code, "missing_compiler", lambda _: "")
    monkeypatch.setattr(deep_code, "build", broken)
    (proof,) = deep_code.compile_own(alone(shipped, "cpu_fp8"))
    assert (proof.code, proof.message) == ("KT522", "'cpu_fp8' does not compile: on host: fp8_linear.cpp: expected ';'")
    found = {proof.message.split(":")[1] for proof in deep_code.compile_own(alone(shipped, "hopper_w8a16"))}
    assert found == {" on sm90"}


def test_what_cannot_be_compiled_here_is_a_note(shipped: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_code, "missing_compiler", lambda _: "no compiler")
    (proof,) = deep_code.compile_own(alone(shipped, "cpu_fp8"))
    assert (proof.code, "no compiler" in proof.message) == ("KT523", True)
    monkeypatch.setattr(deep_code, "missing_compiler", lambda _: "")
    with activated(CompileSettings(compile=False)):
        (proof,) = deep_code.compile_own(alone(shipped, "cpu_fp8"))
    assert (proof.code, "switched off" in proof.message) == ("KT523", True)


def test_a_chip_that_a_row_admits_and_nothing_can_be_compiled_for_is_an_error(shipped: Table) -> None:
    cuda = shipped.platforms["cuda"]
    chips = {"sm90": replace(cuda.architectures["sm90"], target=None)}
    bare = replace(alone(shipped, "hopper_w8a16"), platforms={"cuda": replace(cuda, architectures=chips, devices={})})
    (proof,) = deep_code.compile_own(bare)
    assert (proof.code, proof.path[-1], "`target`" in proof.message) == ("KT522", "sm90", True)


def test_more_shared_memory_than_the_chip_has_is_an_error_and_an_unknown_chip_a_note(shipped: Table) -> None:
    kernel = shipped.kernels["triton_w8a16"]
    chips = [shipped.platforms["cuda"].architectures[name] for name in ("sm86", "sm90")]
    row = {"architecture": "sm86", "function": "tile", "shared": 99 * 1024}
    assert list(deep_code._judged(kernel, chips, [row])) == []
    (proof,) = deep_code._judged(kernel, chips, [{**row, "shared": 99 * 1024 + 1}])
    assert (proof.code, "sm86" in proof.message) == ("KT522", True)
    (proof,) = deep_code._judged(kernel, chips, [{"architecture": "sm90", "unknown_to_triton": True}])
    assert proof.code == "KT523"
