# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""Weight-only MXFP8: e4m3 weights with an e8m0 scale per 1x32, widened in registers; inputs stay as they are."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
import triton
import triton.language as tl

from kerneltable.ops.triton_chip import Bands, Chip, Strip, Tile, require, widened
from kerneltable.ops.triton_device import (
    load_step,
    operands_at,
    power_of_two,
    steps_of,
    store_tile,
    sum_parts,
    tile_of,
    widen,
)
from kerneltable.ops.triton_gemv import multiply_row
from kerneltable.ops.triton_w8a16 import DOT_TYPES, check, how_to_widen

GROUP = 32
"""Columns that share a scale."""

FOLDED = (67, 187)
"""Scale codes (2^-60 to 2^60) within which the scale may be folded into the bf16 weight: every e4m3 number times such a
scale is a normal bf16 number, so the product is exact, and its products with usual inputs stay normal in float32."""

# Measured on an H200 (132 multiprocessors, 227 KiB) on 2026-11-21 over four shapes of DeepSeek-V3 and Llama-3-70B.
# Swapped: the widened weight is then the operand that the matrix unit of SM90 reads from registers.
BANDS: Bands = (
    (16, Tile(block_m=16, block_n=64, block_k=128, warps=4, stages=5)),
    (32, Tile(block_m=32, block_n=64, block_k=128, warps=4, stages=5)),
    (64, Tile(block_m=64, block_n=64, block_k=128, warps=4, stages=4)),
    (256, Tile(block_m=64, block_n=64, block_k=128, warps=4, stages=4, swap=True)),
    (None, Tile(block_m=128, block_n=128, block_k=64, warps=8, stages=4)),
)


@triton.jit
def moderate_power(codes):
    """e8m0 codes other than 0 and 255 as uint8 -> f32 2^(code - 127)."""
    return (codes.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["m"])
def mxfp8_kernel(
    x, w, w_scale, bias, out, m, n, k, stride_x, stride_w, stride_scale,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    SWAP: tl.constexpr, FOLD: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    DOT: tl.constexpr, HOW: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """out [m, n] = x [m, k] times w [n, k] uint8 with w_scale [n, k / 32] uint8, or parts [SPLIT, m, n] f32 of it.

    FOLD multiplies the scale into the bf16 weight; otherwise BK is 32 and each step's float32 sum is scaled, which is
    exact for every exponent.
    """
    pid_m, pid_n = tile_of(tl.program_id(0), m, n, BM, BN, GROUP)
    rows = pid_m * BM + tl.arange(0, BM)
    cols = pid_n * BN + tl.arange(0, BN)
    near = tl.where(rows < m, rows, 0).to(tl.int64)
    side = tl.where(cols < n, cols, 0).to(tl.int64)
    first, last = steps_of(k, BK, SPLIT)
    depth = tl.arange(0, BK)
    each_group = tl.arange(0, BK // 32)
    start = depth + tl.cast(first, tl.int64) * BK
    x_at, w_at = operands_at(x + near * stride_x, w + side * stride_w, start, SWAP)
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    scale_at = w_scale + side * stride_scale
    for step in range(first, last):
        a, codes = load_step(x_at, w_at, depth, k - step * BK, SWAP, EVEN)
        a = a.to(DOT)
        b = widen(codes, DOT, HOW, NAN)
        if FOLD:
            # Beyond k the codes are 0, so any number may stand in for the scale.
            groups = tl.minimum(step * (BK // 32) + each_group, k // 32 - 1)
            if SWAP:
                scale = moderate_power(tl.load(scale_at[:, None] + groups[None, :])).to(DOT)
                b *= tl.reshape(tl.broadcast_to(scale[:, :, None], (BN, BK // 32, 32)), (BN, BK))
                acc = tl.dot(b, a, acc, input_precision="ieee")
            else:
                scale = moderate_power(tl.load(scale_at[None, :] + groups[:, None])).to(DOT)
                b *= tl.reshape(tl.broadcast_to(scale[:, None, :], (BK // 32, 32, BN)), (BK, BN))
                acc = tl.dot(a, b, acc, input_precision="ieee")
        else:
            scale = power_of_two(tl.load(scale_at + step))
            if SWAP:
                acc += tl.dot(b, a, input_precision="ieee") * scale[:, None]
            else:
                acc += tl.dot(a, b, input_precision="ieee") * scale[None, :]
        x_at += BK
        w_at += BK
    store_tile(acc, out, bias, rows, cols, m, n, SWAP, SPLIT, BIAS)


@lru_cache(maxsize=4096)
def tiles(
    m: int, n: int, k: int, multiprocessors: int, shared_memory_kib: int, input_bytes: int = 2, wgmma: bool = True
) -> Tile | Strip:
    """The work of one program for this size of product; input_bytes is the size of one element of x."""
    return widened(BANDS, (m, n, k), multiprocessors, shared_memory_kib, input_bytes, wgmma)


def candidates(m: int, n: int, k: int) -> tuple[Tile | Strip, ...]:
    """Tiles worth timing for this size and 16-bit inputs: 8 to 12 of them."""
    if m == 1:
        shapes = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 4), (4, 4096, 8), (8, 1024, 4), (8, 2048, 8), (16, 512, 4))
        return (*(Strip(*s) for s in shapes), Tile(16, 64, 128, 4, 4, swap=True))
    bm = 16 if m <= 16 else 32 if m <= 32 else 64
    if m <= 64:
        return (
            Tile(bm, 64, 128, 4, 5, swap=True), Tile(bm, 64, 128, 4, 4, split_k=2, swap=True),
            Tile(bm, 64, 128, 4, 4, split_k=4, swap=True), Tile(bm, 128, 128, 8, 4, split_k=2, swap=True),
            Tile(bm, 128, 128, 8, 4, split_k=4, swap=True), Tile(bm, 128, 64, 4, 4, split_k=4, swap=True),
            Tile(bm, 32, 128, 4, 6), Tile(bm, 64, 128, 4, 5), Tile(bm, 32, 128, 4, 4, split_k=2),
            Tile(bm, 64, 128, 4, 4, split_k=4),
        )  # fmt: skip
    return (
        Tile(64, 64, 128, 4, 4, swap=True), Tile(128, 64, 64, 4, 4, swap=True), Tile(64, 128, 64, 4, 4, swap=True),
        Tile(128, 128, 64, 8, 4, swap=True), Tile(128, 128, 64, 4, 4, swap=True), Tile(128, 128, 128, 8, 3, swap=True),
        Tile(256, 128, 64, 8, 4, swap=True), Tile(256, 64, 64, 4, 4, swap=True), Tile(128, 128, 64, 8, 4),
        Tile(128, 128, 64, 8, 4, group_m=32, swap=True),
    )  # fmt: skip


def foldable(scale: torch.Tensor) -> bool:
    """Whether every code of an e8m0 scale (uint8) may be folded into bf16 weights; waits for the device."""
    return scale.numel() > 0 and int(scale.min()) >= FOLDED[0] and int(scale.max()) <= FOLDED[1]


def product(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None,
    output: torch.dtype, chip: Chip, tile: Tile | Strip | None = None, *,
    nan_codes: bool = True, fold: bool = False, how: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times widened weight transposed plus bias, rounded once.

    x             [m, k] bf16, f16 or f32, columns contiguous, m at least 1, k a multiple of 32
    weight        [n, k] uint8 holding e4m3, columns contiguous
    weight_scale  [n, k / 32] uint8 holding e8m0, columns contiguous
    bias          [n] any float dtype, or None
    tile          None lets `tiles` choose
    nan_codes     False promises that the weight holds no NaN (0x7f, 0xff)
    fold          True promises that `foldable` holds; it counts for bf16 inputs alone
    how           "pairs", "quads", "convert" or "bits"; None lets the chip decide
    returns       [m, n] of dtype output, contiguous
    errors        KernelInputError if a tensor does not fit
    """
    check(x, weight, bias)
    (m, k), n = x.shape, weight.shape[0]
    fits = k % GROUP == 0 and tuple(weight_scale.shape) == (n, k // GROUP)
    fits = fits and weight_scale.dtype == torch.uint8 and (weight_scale.stride(1) == 1 or k == GROUP)
    wanted = f"k a multiple of {GROUP} and uint8 scales [{n}, {k // GROUP}]"
    require(fits, "triton_mxfp8", wanted, f"k {k}, {tuple(weight_scale.shape)} {weight_scale.dtype}")
    tile = tile or tiles(m, n, k, chip.multiprocessors, chip.shared_memory_kib, x.element_size(), chip.wgmma)
    stored = torch.float32 if chip.interpreted else output  # the interpreter cuts where bf16 should be rounded
    out = torch.empty(m, n, dtype=stored, device=x.device)
    if isinstance(tile, Strip):
        multiply_row(
            x, None, weight, weight_scale, bias, out, tile, chip,
            group=GROUP, input="plain", scales="mx", nan_codes=nan_codes,
        )  # fmt: skip
        return out.to(output)
    parts = out if tile.split_k == 1 else torch.empty(tile.split_k, m, n, dtype=torch.float32, device=x.device)
    fold = fold and x.dtype == torch.bfloat16
    if not fold and tile.block_k != GROUP:
        tile = replace(tile, block_k=GROUP)
    dot = torch.float32 if chip.interpreted else x.dtype
    mxfp8_kernel[(-(-m // tile.block_m) * -(-n // tile.block_n), tile.split_k)](
        x, weight, weight_scale, bias, parts, m, n, k, x.stride(0), weight.stride(0), weight_scale.stride(0),
        BM=tile.block_m, BN=tile.block_n, BK=tile.block_k, GROUP=tile.group_m, SPLIT=tile.split_k, SWAP=tile.swap,
        FOLD=fold, EVEN=k % tile.block_k == 0, BIAS=bias is not None, DOT=DOT_TYPES[dot],
        HOW=how or how_to_widen(chip, dot, tile.swap), NAN=nan_codes, num_warps=tile.warps, num_stages=tile.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    if tile.split_k > 1:
        sum_parts(parts, bias, out)
    return out.to(output)
