# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""FP8 quantizers of a layer's input in Triton, byte for byte those of torch_fp8.

The largest magnitude is taken over float32 bits as integers: NaN is above infinity there and infinity above every
finite value, so NaN propagates on every backend. Divisions are IEEE divisions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kerneltable.ops.triton_chip import Chip, require
from kerneltable.ops.triton_device import narrow

GROUP = 128
"""Columns that share a scale in the block quantizer."""

Quantized = tuple[torch.Tensor, torch.Tensor]


@triton.jit
def scale_of(amax_bits):
    """Bits of the largest magnitude -> max(amax / 448, 2^-126); NaN stays NaN."""
    scale = tl.div_rn(amax_bits.to(tl.float32, bitcast=True), 448.0)
    return tl.where(scale < 1.1754943508222875e-38, 1.1754943508222875e-38, scale)


@triton.jit
def encode(values, scale, CONVERT: tl.constexpr):
    """values / scale, clamped to +-448 with NaN kept, to e4m3."""
    ratio = tl.div_rn(values, scale)
    ratio = tl.where(ratio > 448.0, 448.0, ratio)
    ratio = tl.where(ratio < -448.0, -448.0, ratio)
    return narrow(ratio, CONVERT)


@triton.jit(do_not_specialize=["m"])
def block_kernel(
    x, codes, scales, m, k, stride_x, groups, ROWS: tl.constexpr, GROUP: tl.constexpr, CONVERT: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    cols = group * GROUP + tl.arange(0, GROUP)
    keep = (rows < m)[:, None] & (cols < k)[None, :]
    far = rows.to(tl.int64)
    values = tl.load(x + far[:, None] * stride_x + cols[None, :], mask=keep, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1))
    tl.store(codes + far[:, None] * k + cols[None, :], encode(values, scale[:, None], CONVERT), mask=keep)
    tl.store(scales + far * groups + group, scale, mask=rows < m)


@triton.jit
def token_kernel(x, upper, codes, scales, k, stride_x, BLOCK: tl.constexpr, UPPER: tl.constexpr, CONVERT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, k, BLOCK):
        values = tl.load(x + row * stride_x + first + cols, mask=first + cols < k, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    scale = scale_of(tl.max(largest, axis=0))
    if UPPER:
        limit = tl.load(upper).to(tl.float32)
        scale = tl.where(scale > limit, limit, scale)
    tl.store(scales + row, scale)
    for first in range(0, k, BLOCK):
        keep = first + cols < k
        values = tl.load(x + row * stride_x + first + cols, mask=keep, other=0.0).to(tl.float32)
        tl.store(codes + row * k + first + cols, encode(values, scale, CONVERT), mask=keep)


@triton.jit(do_not_specialize=["m"])
def amax_kernel(x, partial, m, k, stride_x, BLOCK: tl.constexpr):
    """Program p leaves the bits of the largest magnitude of rows p, p + programs, ... in partial[p]."""
    cols = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.int32)
    for row in range(tl.program_id(0), m, tl.num_programs(0)):
        start = x + tl.cast(row, tl.int64) * stride_x
        for first in range(0, k, BLOCK):
            values = tl.load(start + first + cols, mask=first + cols < k, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(partial + tl.program_id(0), tl.max(largest, axis=0))


@triton.jit
def shared_scale_kernel(
    x, partial, upper, given, codes, scale_out, k, stride_x, count,
    BLOCK: tl.constexpr, COUNT: tl.constexpr, STATIC: tl.constexpr, UPPER: tl.constexpr, CONVERT: tl.constexpr,
):  # fmt: skip
    """Quantize one row's block with a scale given (STATIC) or made from the largest of partial[0:count]."""
    row = tl.program_id(0).to(tl.int64)
    if STATIC:
        scale = tl.load(given).to(tl.float32)
    else:
        each = tl.arange(0, COUNT)
        scale = scale_of(tl.max(tl.load(partial + each, mask=each < count, other=0), axis=0))
        if UPPER:
            limit = tl.load(upper).to(tl.float32)
            scale = tl.where(scale > limit, limit, scale)
        if (row == 0) & (tl.program_id(1) == 0):
            tl.store(scale_out, scale)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = cols < k
    values = tl.load(x + row * stride_x + cols, mask=keep, other=0.0).to(tl.float32)
    tl.store(codes + row * k + cols, encode(values, scale, CONVERT), mask=keep)


def quantize_block(x: torch.Tensor, chip: Chip) -> Quantized:
    """Quantize each row in groups of 128 columns; the last group may be short.

    x        [m, k] bf16, f16 or f32, columns contiguous, any row stride; m and k at least 1
    returns  codes [m, k] e4m3 and scales [m, ceil(k / 128)] f32, as torch_fp8.quantize_block
    errors   KernelInputError if x is not such a matrix
    """
    m, k = _matrix(x)
    groups = -(-k // GROUP)
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(m, groups, dtype=torch.float32, device=x.device)
    rows = min(32, triton.next_power_of_2(-(-m * groups // (4 * chip.multiprocessors))))
    block_kernel[(-(-m // rows), groups)](
        x, codes, scales, m, k, x.stride(0), groups,
        ROWS=rows, GROUP=GROUP, CONVERT=chip.fp8_convert, num_warps=max(1, min(4, rows // 4)),
    )  # fmt: skip
    return codes, scales


def quantize_token(x: torch.Tensor, upper: torch.Tensor | None, chip: Chip) -> Quantized:
    """Quantize each row with one scale.

    x        [m, k] as in quantize_block
    upper    [] or [1] f32, the largest scale allowed, or None
    returns  codes [m, k] e4m3 and scales [m, 1] f32
    errors   KernelInputError if x is not such a matrix
    """
    m, k = _matrix(x)
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(m, 1, dtype=torch.float32, device=x.device)
    block = min(4096, triton.next_power_of_2(k))
    token_kernel[(m,)](
        x, upper, codes, scales, k, x.stride(0),
        BLOCK=block, UPPER=upper is not None, CONVERT=chip.fp8_convert, num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip
    return codes, scales


def quantize_tensor(x: torch.Tensor, upper: torch.Tensor | None, chip: Chip) -> Quantized:
    """Quantize all of x with one scale taken from its own largest magnitude: two launches, no atomics.

    x        [m, k] as in quantize_block
    upper    [] or [1] f32, the largest scale allowed, or None
    returns  codes [m, k] e4m3 and the scale [] f32
    errors   KernelInputError if x is not such a matrix
    """
    m, k = _matrix(x)
    count = min(m, 4 * chip.multiprocessors)
    partial = torch.empty(count, dtype=torch.int32, device=x.device)
    block = min(4096, triton.next_power_of_2(k))
    amax_kernel[(count,)](x, partial, m, k, x.stride(0), BLOCK=block, num_warps=max(1, min(8, block // 512)))
    scale = torch.empty((), dtype=torch.float32, device=x.device)
    return _with_one_scale(x, chip, scale=scale, partial=partial, upper=upper), scale


def quantize_static(x: torch.Tensor, scale: torch.Tensor, chip: Chip) -> Quantized:
    """Quantize all of x with the scale that the checkpoint gives.

    x        [m, k] as in quantize_block
    scale    [] or [1] f32 (widened when the layer is packed)
    returns  codes [m, k] e4m3 and the scale as given
    errors   KernelInputError if x is not such a matrix
    """
    _matrix(x)
    return _with_one_scale(x, chip, scale=scale, partial=None, upper=None), scale


def _with_one_scale(
    x: torch.Tensor, chip: Chip, *, scale: torch.Tensor, partial: torch.Tensor | None, upper: torch.Tensor | None
) -> torch.Tensor:
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    block = min(2048, triton.next_power_of_2(k))
    count = 1 if partial is None else partial.numel()
    shared_scale_kernel[(m, -(-k // block))](
        x, partial, upper, scale, codes, scale, k, x.stride(0), count,
        BLOCK=block, COUNT=triton.next_power_of_2(count), STATIC=partial is None, UPPER=upper is not None,
        CONVERT=chip.fp8_convert, num_warps=max(1, min(4, block // 512)),
    )  # fmt: skip
    return codes


def _matrix(x: torch.Tensor) -> tuple[int, int]:
    floats = (torch.bfloat16, torch.float16, torch.float32)
    fits = x.dim() == 2 and x.dtype in floats and x.numel() > 0 and (x.stride(1) == 1 or x.shape[1] == 1)
    require(
        fits, "quantizer", "x [m, k] of bf16, f16 or f32, not empty, columns contiguous", f"{tuple(x.shape)} {x.dtype}"
    )
    return x.shape[0], x.shape[1]
