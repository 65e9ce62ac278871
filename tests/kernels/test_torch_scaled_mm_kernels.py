"""The scaled_mm adapters: on a CPU as far as torch goes there, and through stand-ins for what only a GPU has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kerneltable.kernels import (
    torch_scaled_mm_block,
    torch_scaled_mm_mxfp8,
    torch_scaled_mm_rowwise,
    torch_scaled_mm_tensorwise,
)
from kerneltable.model import Problem
from kerneltable.ops.torch_fp8 import widen_e8m0
from kerneltable.run.layer_data import EXACT_LIMIT, exact_layer, random_layer
from kerneltable.run.oracle import error_over_bound, reference64

VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
on_cpu = pytest.mark.skipif(VERSION < (2, 13), reason="scaled_mm with row scales on a CPU came with torch 2.13")
OUTPUTS = ("bf16", "f16", "f32")


def problem_of(weight: str, given: str, scaling: str, **more: Any) -> Problem:
    return Problem(
        "fp8_w8a8",
        m=more.pop("m", 5),
        n=more.pop("n", 48),
        k=more.pop("k", 160),
        weight_granularity=weight,
        weight_scale="f32",
        input_granularity=given,
        input_scaling=scaling,
        **more,
    )


def check(kernel_class: Any, problem: Problem, accumulator: str = "fp8_promoted") -> None:
    """Random data within the bound, integer data bit-equal to float64."""
    data = random_layer(problem, torch.Generator().manual_seed(problem.k))
    out = kernel_class(problem, **data.tensors)(data.x, data.bias)
    assert out.shape == (problem.m, problem.n)
    assert out.is_contiguous()
    ref, magnitude = reference64(problem, data.tensors, data.x, data.bias, True)
    assert error_over_bound(out, ref, magnitude, problem.k, problem.output, accumulator) <= 1
    exact = exact_layer(problem, torch.Generator().manual_seed(problem.n))
    ref, magnitude = reference64(problem, exact.tensors, exact.x, exact.bias, True)
    assert magnitude.max() < EXACT_LIMIT
    out = kernel_class(problem, **exact.tensors)(exact.x, exact.bias)
    assert torch.equal(out.double(), ref.to(out.dtype).double())


@on_cpu
@pytest.mark.parametrize("scaling", ["dynamic", "static"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_tensor_scales_are_right(scaling: str, bias: bool, output: str) -> None:
    check(torch_scaled_mm_tensorwise.Kernel, problem_of("tensor", "tensor", scaling, bias=bias, output=output), "f32")


@on_cpu
@pytest.mark.parametrize("weight", ["tensor", "channel"])
@pytest.mark.parametrize("given", ["tensor", "token"])
@pytest.mark.parametrize("scaling", ["dynamic", "static"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_row_scales_and_mixed_ones_are_right(weight: str, given: str, scaling: str, output: str) -> None:
    check(torch_scaled_mm_rowwise.Kernel, problem_of(weight, given, scaling, bias=True, output=output), "f32")


@on_cpu
@pytest.mark.parametrize("direct", [frozenset(), frozenset({torch.bfloat16})])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_chips_without_float32_rows_are_right_too(
    monkeypatch: pytest.MonkeyPatch, direct: frozenset[torch.dtype], bias: bool, output: str
) -> None:
    monkeypatch.setattr(torch_scaled_mm_rowwise, "direct_dtypes", lambda device: direct)
    check(torch_scaled_mm_rowwise.Kernel, problem_of("channel", "token", "dynamic", bias=bias, output=output), "f32")


def test_only_sm90_gives_float32_rows_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {torch.bfloat16, torch.float16, torch.float32}
    cuda = torch.device("cuda:0")
    for capability, expected in (
        ((9, 0), every),
        ((8, 9), every - {torch.float32}),
        ((10, 0), every - {torch.float32}),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr(torch.version, "hip", None)
        assert torch_scaled_mm_rowwise.direct_dtypes(cuda) == expected
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert torch_scaled_mm_rowwise.direct_dtypes(cuda) == {torch.bfloat16}
    assert torch_scaled_mm_rowwise.direct_dtypes(torch.device("cpu")) == every


def block_stand_in(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What block_product computes, from its own arguments."""
    n, k = weight.shape
    right = packed[: k // 128].t().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1).double() * weight.double()
    return ((codes.double() * scales.repeat_interleave(128, 1).double()) @ right.t()).to(dtype)


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_block_adapter_packs_and_rounds_once(
    monkeypatch: pytest.MonkeyPatch, scale: str, bias: bool, output: str
) -> None:
    monkeypatch.setattr(torch_scaled_mm_block, "block_product", block_stand_in)
    problem = Problem(
        "fp8_block_w8a8",
        m=5,
        n=144,
        k=640,
        bias=bias,
        output=output,
        weight_granularity="block",
        weight_block=(128, 128),
        weight_scale=scale,
        input_granularity="block",
        input_scaling="dynamic",
    )
    check(torch_scaled_mm_block.Kernel, problem, "f32")


def mx_stand_in(
    codes: torch.Tensor, swizzled: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What mx_product computes: scales taken back out of their tiles."""
    sides = []
    for matrix, flat in ((codes, swizzled), (weight, packed)):
        rows, k = matrix.shape
        across = -(-(k // 32) // 4)
        tiles = flat.view(torch.uint8).reshape(-(-rows // 128), across, 32, 4, 4)
        plain = tiles.permute(0, 3, 2, 1, 4).reshape(-1, across * 4)[:rows, : k // 32]
        sides.append(matrix.double() * widen_e8m0(plain).repeat_interleave(32, 1).double())
    return (sides[0] @ sides[1].t()).to(dtype)


@pytest.mark.parametrize("stored", ["uint8", "e8m0"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", ["bf16", "f32"])
def test_the_mx_adapter_swizzles_and_rounds_once(
    monkeypatch: pytest.MonkeyPatch, stored: str, bias: bool, output: str
) -> None:
    monkeypatch.setattr(torch_scaled_mm_mxfp8, "mx_product", mx_stand_in)
    problem = Problem(
        "mxfp8",
        m=5,
        n=144,
        k=160,
        bias=bias,
        output=output,
        weight_granularity="block",
        weight_block=(1, 32),
        weight_scale="e8m0",
        input_granularity="block",
        input_scaling="dynamic",
    )
    check(torch_scaled_mm_mxfp8.Kernel, problem, "f32")
    data = random_layer(problem, torch.Generator().manual_seed(1))
    if stored == "uint8":
        twin = {**data.tensors, "weight_scale": data.tensors["weight_scale"].view(torch.uint8)}
        both = [torch_scaled_mm_mxfp8.Kernel(problem, **t)(data.x, data.bias) for t in (data.tensors, twin)]
        assert torch.equal(*both)
