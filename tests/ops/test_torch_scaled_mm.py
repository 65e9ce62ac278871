"""Arguments of torch.nn.functional.scaled_mm: layouts and padding, against fake ops that read them as cuBLASLt does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.functional import ScalingType, SwizzleType

from kerneltable.ops import torch_scaled_mm as ops
from kerneltable.ops.torch_fp8 import quantize_block, widen_e8m0
from kerneltable.ops.torch_mx import quantize_mx


def strided(tensor: torch.Tensor, index: int) -> float:
    """The element at this offset of the tensor's own memory, whatever its shape says."""
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + index).item()


def fake_block_op(
    a: torch.Tensor, b: torch.Tensor, scale_a: Any, recipe_a: Any, scale_b: Any, recipe_b: Any, **rest: Any
):  # type: ignore[no-untyped-def]
    """What cuBLASLt computes, reading scales by their documented memory layout; refuses what it refuses."""
    assert (recipe_a, recipe_b) == (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128)
    assert rest["use_fast_accum"] is False
    m, k = a.shape
    n = b.shape[1]
    groups = k // 128
    padded = -(-groups // 4) * 4
    assert m % 4 == 0
    assert n % 16 == 0
    assert a.is_contiguous()
    assert b.stride() == (1, k)
    assert scale_a.shape == (m, groups)
    assert scale_a.stride() == (1, m) or (groups == 1 and scale_a.stride() == (1, 1))
    assert scale_b.shape == (padded, -(-n // 128))
    assert scale_b.stride() == (1, padded)
    out = torch.zeros(m, n, dtype=torch.float64)
    for g in range(groups):
        part = slice(128 * g, 128 * g + 128)
        left = torch.tensor([strided(scale_a, g * m + i) for i in range(m)], dtype=torch.float64)
        right = torch.tensor([strided(scale_b, (j // 128) * padded + g) for j in range(n)], dtype=torch.float64)
        out += (a[:, part].double() @ b[part].double()) * left[:, None] * right[None, :]
    return out.to(rest["output_dtype"])


@pytest.mark.parametrize("m", [1, 3, 4, 5, 8])
@pytest.mark.parametrize(("n", "k"), [(16, 128), (144, 640), (256, 512), (128, 1152)])
def test_block_arguments_are_laid_out_as_cublaslt_reads_them(m: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(m + n + k)
    x = torch.randn(m, k, generator=generator)
    weight = (torch.randn(n, k, generator=generator) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // 128), k // 128, generator=generator)
    codes, scales = quantize_block(x)
    out = ops.block_product(codes, scales, weight, ops.pack_block_scale(scale), torch.float32, scaled_mm=fake_block_op)
    rows = scale[[j // 128 for j in range(n)]].repeat_interleave(128, 1).double() * weight.double()
    stated = (codes.double() * scales.repeat_interleave(128, 1).double()) @ rows.t()
    assert out.shape == (m, n)
    assert out.is_contiguous()
    assert torch.allclose(out.double(), stated, rtol=1e-6, atol=1e-6 * stated.abs().max().item())


def test_padding_rows_are_zero_codes_with_a_finite_scale() -> None:
    codes, scales = quantize_block(torch.full((5, 128), 3.0))
    padded, padded_scales = ops.pad_rows(codes, scales)
    assert padded.shape == (8, 128)
    assert padded[5:].view(torch.uint8).sum() == 0
    assert padded_scales[5:].tolist() == [[1.0]] * 3
    same, same_scales = ops.pad_rows(codes[:4], scales[:4])
    assert same.shape == (4, 128)
    assert same_scales.shape == (4, 1)


def test_the_weight_scale_is_padded_with_zeros_along_k_only() -> None:
    packed = ops.pack_block_scale(torch.ones(3, 5))
    assert packed.shape == (8, 3)
    assert packed[:5].eq(1).all()
    assert packed[5:].eq(0).all()
    assert ops.pack_block_scale(torch.ones(3, 8)).shape == (8, 3)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (130, 4), (33, 9), (256, 8)])
def test_swizzled_scales_lie_where_the_layout_says(rows: int, columns: int) -> None:
    codes = torch.randint(1, 255, (rows, columns), generator=torch.Generator().manual_seed(rows)).to(torch.uint8)
    flat = ops.swizzle_mx_scale(codes).view(torch.uint8)
    across = -(-columns // 4)
    assert flat.numel() == -(-rows // 128) * across * 512
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * across + c // 4
            assert flat[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] == codes[r, c]
    assert flat.ne(0).sum() == rows * columns


def test_mx_arguments_name_recipe_and_swizzle() -> None:
    seen: dict[str, Any] = {}

    def fake(a: torch.Tensor, b: torch.Tensor, scale_a: Any, recipe_a: Any, scale_b: Any, recipe_b: Any, **rest: Any):  # type: ignore[no-untyped-def]
        seen.update(rest, recipes=(recipe_a, recipe_b), dtypes=(scale_a.dtype, scale_b.dtype), strides=b.stride())
        return torch.zeros(a.shape[0], b.shape[1], dtype=rest["output_dtype"])

    codes, exponents = quantize_mx(torch.ones(3, 64))
    weight = torch.ones(16, 64).to(torch.float8_e4m3fn)
    swizzled = ops.swizzle_mx_scale(exponents)
    packed = ops.swizzle_mx_scale(torch.full((16, 2), 127, dtype=torch.uint8))
    out = ops.mx_product(codes, swizzled, weight, packed, torch.bfloat16, scaled_mm=fake)
    assert out.shape == (3, 16)
    assert seen["recipes"] == (ScalingType.BlockWise1x32, ScalingType.BlockWise1x32)
    assert seen["dtypes"] == (torch.float8_e8m0fnu, torch.float8_e8m0fnu)
    assert seen["swizzle_a"] == seen["swizzle_b"] == SwizzleType.SWIZZLE_32_4_4
    assert seen["strides"] == (1, 64)
    assert seen["use_fast_accum"] is False
    assert widen_e8m0(exponents).eq(2.0**-8).all()


@pytest.mark.parametrize("accept", ["block", "mx"])
def test_torch_itself_accepts_the_arguments(accept: str) -> None:
    """torch's own shape checks, on meta tensors: no GPU is needed, and a wrong layout raises before torch 2.15."""
    checks = torch.__version__ < "2.15"  # from there on torch does not look at scales on meta
    codes = torch.empty(8, 640, device="meta", dtype=torch.float8_e4m3fn)
    weight = torch.empty(256, 640, device="meta", dtype=torch.float8_e4m3fn)
    if accept == "block":
        scales = torch.empty(8, 5, device="meta")
        packed = ops.pack_block_scale(torch.empty(2, 5, device="meta"))
        out = ops.block_product(codes, scales, weight, packed, torch.bfloat16)
        with pytest.raises(RuntimeError, match="scale b must have shape") if checks else nullcontext():
            ops.block_product(codes, scales, weight, torch.empty(2, 5, device="meta").t(), torch.bfloat16)
    else:
        scales = torch.empty(128 * 20, device="meta", dtype=torch.float8_e8m0fnu)
        packed = torch.empty(256 * 20, device="meta", dtype=torch.float8_e8m0fnu)
        out = ops.mx_product(codes, scales, weight, packed, torch.bfloat16)
        with pytest.raises(RuntimeError, match="for MX scaling") if checks else nullcontext():
            ops.mx_product(codes, scales, weight, packed[:-1], torch.bfloat16)
    assert out.shape == (8, 256)
