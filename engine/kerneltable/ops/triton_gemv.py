# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""One row times a quantized weight: no matrix unit, only wide loads and float32 sums. Bound by the weight's bytes.

A program owns BN outputs and walks along k. It keeps [BN, GROUPS, G] partial sums, one a column, and adds them once at
the end; a group is what one scale covers along k, so a scale is read once a group and multiplied into the input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kerneltable.ops.triton_chip import Chip, Strip
from kerneltable.ops.triton_device import power_of_two, widen


@triton.jit
def gemv_kernel(
    x, x_scale, w, w_scale, bias, out, n, k, stride_w, stride_scale, channel_step,
    BN: tl.constexpr, GROUPS: tl.constexpr, G: tl.constexpr, INPUT: tl.constexpr, WEIGHT: tl.constexpr,
    HOW: tl.constexpr, NAN: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """out [n] = x [k] times w [n, k] uint8.

    INPUT   "plain" (x is a float), "block" (x is e4m3, a scale a group), "one" (x is e4m3, one scale)
    WEIGHT  "channel" (f32, channel_step 1 or 0), "block" (f32, a line for 128 rows), "mx" (e8m0 [n, k / G])
    """
    pid = tl.program_id(0)
    cols = pid * BN + tl.arange(0, BN)
    safe = tl.where(cols < n, cols, 0)
    group = tl.arange(0, GROUPS)
    inside = group[:, None] * G + tl.arange(0, G)[None, :]
    weights = w + (safe.to(tl.int64) * stride_w)[:, None, None]
    acc = tl.zeros((BN, GROUPS, G), tl.float32)
    scales = tl.cdiv(k, G)
    for step in range(0, tl.cdiv(k, GROUPS * G)):
        depth = step * (GROUPS * G) + inside
        groups = step * GROUPS + group
        if EVEN:
            codes = tl.load(weights + depth[None, :, :])
            given = tl.load(x + depth)
        else:
            codes = tl.load(weights + depth[None, :, :], mask=(depth < k)[None, :, :], other=0)
            given = tl.load(x + depth, mask=depth < k, other=0)
        values = given.to(tl.float32) if INPUT == "plain" else widen(given, tl.float32, HOW, True)
        if INPUT == "block":
            factor = tl.load(x_scale + groups, mask=groups < scales, other=0.0)
            if WEIGHT == "block":
                line = (pid * BN // 128).to(tl.int64) * stride_scale
                factor *= tl.load(w_scale + line + groups, mask=groups < scales, other=0.0)
            values *= factor[:, None]
        elif WEIGHT == "block":
            line = (pid * BN // 128).to(tl.int64) * stride_scale
            values *= tl.load(w_scale + line + groups, mask=groups < scales, other=0.0)[:, None]
        product = widen(codes, tl.float32, HOW, NAN) * values[None, :, :]
        if WEIGHT == "mx":
            at = w_scale + safe.to(tl.int64)[:, None] * stride_scale + groups[None, :]
            product *= power_of_two(tl.load(at, mask=(groups < scales)[None, :], other=127))[:, :, None]
        acc += product
    total = tl.sum(tl.sum(acc, axis=2), axis=1)
    if INPUT == "one":
        total *= tl.load(x_scale)
    if WEIGHT == "channel":
        total *= tl.load(w_scale + safe * channel_step)
    if BIAS:
        total += tl.load(bias + safe).to(tl.float32)
    tl.store(out + cols, total.to(out.dtype.element_ty), mask=cols < n)


def multiply_row(
    x: torch.Tensor, x_scale: torch.Tensor | None, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, out: torch.Tensor, strip: Strip, chip: Chip, *, group: int, input: str, scales: str,
    nan_codes: bool,
) -> None:  # fmt: skip
    """Launch gemv_kernel.

    x             [1, k] float, or uint8 holding e4m3 when input is "block" or "one"
    x_scale       f32 [1, ceil(k / 128)] or [1] or None
    weight        [n, k] uint8 holding e4m3, columns contiguous
    weight_scale  f32 or uint8, as `scales` ("channel", "block", "mx") says
    out           [1, n], written
    """
    n, k = weight.shape
    wide = max(strip.block_k // group, 1)
    channel_step = 0 if weight_scale.numel() == 1 else 1
    gemv_kernel[(-(-n // strip.block_n),)](
        x, x_scale, weight, weight_scale, bias, out, n, k, weight.stride(0),
        weight_scale.stride(0) if weight_scale.dim() == 2 else 0, channel_step,
        BN=strip.block_n, GROUPS=wide, G=group, INPUT=input, WEIGHT=scales,
        HOW="convert" if chip.fp8_convert else "bits", NAN=nan_codes, EVEN=k % (wide * group) == 0,
        BIAS=bias is not None, num_warps=strip.warps,
    )  # fmt: skip
