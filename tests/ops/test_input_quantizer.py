"""Which quantizer a layer is given, and that the choice changes no byte."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from kerneltable.model import Problem
from kerneltable.ops import input_quantizer as module
from kerneltable.ops import triton_chip, triton_quantize
from kerneltable.ops.torch_dequantize import quantize_input

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def problem_of(granularity: str, scaling: str = "dynamic", block: tuple[int, int] | None = None) -> Problem:
    return Problem("s", n=8, k=160, input_granularity=granularity, input_scaling=scaling, weight_block=block)


@pytest.mark.parametrize("granularity", ["block", "token", "tensor"])
@pytest.mark.parametrize("scaling", ["dynamic", "static"])
@pytest.mark.parametrize("capped", [False, True])
def test_on_a_cpu_it_is_the_torch_quantizer(granularity: str, scaling: str, capped: bool) -> None:
    problem = problem_of(granularity, scaling, (128, 128))
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(1))
    scale, upper = torch.tensor([0.01]), torch.tensor([0.004]) if capped else None
    found = module.input_quantizer(problem, CPU, scale, upper)(x)
    stated = quantize_input(problem, x, scale, upper)
    assert torch.equal(found[0].view(torch.uint8), stated[0].view(torch.uint8))
    assert torch.equal(found[1], stated[1])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CUDA device be named without one."""
    monkeypatch.setattr(triton_chip, "chip_of", lambda device: "chip")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("problem", "scale", "expected"),
    [
        (problem_of("block", block=(128, 128)), None, triton_quantize.quantize_block),
        (problem_of("token"), None, triton_quantize.quantize_token),
        (problem_of("tensor"), None, triton_quantize.quantize_tensor),
        (problem_of("tensor", "static"), torch.ones(1), triton_quantize.quantize_static),
        (problem_of("block", block=(64, 32)), None, quantize_input),
        (problem_of("tensor", "static"), None, quantize_input),
    ],
)
def test_on_a_gpu_it_is_tritons_where_there_is_one(problem: Problem, scale: Any, expected: Any) -> None:
    chosen = module.input_quantizer(problem, CUDA, scale)
    assert isinstance(chosen, partial)
    assert (module.quantize_input if chosen.func is module._by_torch else chosen.func) is expected


def test_without_triton_a_gpu_gets_the_torch_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    chosen = module.input_quantizer(problem_of("token"), CUDA)
    assert isinstance(chosen, partial)
    assert chosen.func is module._by_torch
