"""Which quantizer a layer is given, and that the choice changes no byte."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.model import Problem
from kerneltable.ops import cuda_quantize, cuda_quantize_rows, triton_chip, triton_quantize
from kerneltable.ops import input_quantizer as module
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_quantize import GroupQuantizer
from kerneltable.ops.cuda_quantize_rows import TensorQuantizer, TokenQuantizer
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
    monkeypatch.setattr(triton_chip, "chip_of", lambda device, features: "chip")


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


SM90 = CudaChip("sm90", "sm_90a", 232448, (("KT_HAS_MMA_FP8", 1),), 132)
MX = Problem("mxfp8", n=8, k=160, input_granularity="block", input_scaling="dynamic", weight_block=(1, 32))
SHIPPED = [
    (problem_of("block", block=(128, 128)), None, GroupQuantizer),
    (MX, None, GroupQuantizer),
    (problem_of("token"), None, TokenQuantizer),
    (problem_of("tensor"), None, TensorQuantizer),
    (problem_of("tensor", "static"), torch.ones(1), TensorQuantizer),
]


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tensors of a CUDA device be named without one."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(*sizes, **{**options, "device": "cpu"}))


def loading(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    for place in (cuda_quantize, cuda_quantize_rows):
        monkeypatch.setattr(place, "load", load)


@pytest.mark.usefixtures("gpu", "without_memory")
@pytest.mark.parametrize(("problem", "scale", "expected"), SHIPPED)
def test_where_the_chip_is_known_it_is_that_of_csrc(
    problem: Problem, scale: Any, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading(monkeypatch, lambda one, chip, device: "function")
    chosen = module.input_quantizer(problem, CUDA, scale, chip=SM90)
    assert type(chosen) is expected
    assert module.source_of(chosen) == "cuda"


@pytest.mark.usefixtures("gpu", "without_memory")
@pytest.mark.parametrize(("problem", "scale", "expected"), SHIPPED)
def test_without_nvrtc_it_is_what_it_would_be_otherwise(
    problem: Problem, scale: Any, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Any, chip: Any, device: Any) -> None:
        raise KernelUnavailable("no NVRTC")

    loading(monkeypatch, refuse)
    chosen = module.input_quantizer(problem, CUDA, scale, chip=SM90)
    assert module.source_of(chosen) == ("torch" if problem is MX else "triton")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("chip", [None, CudaChip("sm80", "sm_80", 166912, (), 108)])
def test_a_chip_without_fp8_is_not_asked_for_it(chip: CudaChip | None, monkeypatch: pytest.MonkeyPatch) -> None:
    loading(monkeypatch, lambda one, chip, device: pytest.fail("compiled"))
    assert module.source_of(module.input_quantizer(problem_of("token"), CUDA, chip=chip)) == "triton"


def test_by_column_fills_up_whatever_quantizes() -> None:
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(1))
    problem = problem_of("block", block=(128, 128))
    quantize = module.input_quantizer(problem, CPU, by_column=True)
    codes, scales = quantize(x)
    stated = quantize_input(problem, x, None, None)
    assert codes.shape == (4, 160)
    assert scales.stride() == (1, 4)
    assert torch.equal(codes[:3].view(torch.uint8), stated[0].view(torch.uint8))
    assert torch.equal(scales[:3], stated[1])
    assert module.source_of(quantize) == "torch"
