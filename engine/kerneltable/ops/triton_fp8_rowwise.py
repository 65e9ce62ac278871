"""W8A8 with one input scale a row (or for all rows) and one weight scale a channel (or for all channels)."""

from __future__ import annotations

from functools import lru_cache

import torch

from kerneltable.ops.triton_chip import Bands, Chip, Strip, Tile, choose, fit, require, split, strip
from kerneltable.ops.triton_fp8_product import check, multiply
from kerneltable.ops.triton_gemv import multiply_row

STEP = 128
"""Columns of k that one FP8 dot covers before its sum is promoted to float32."""

# Measured on an H200 (132 multiprocessors, 227 KiB) on 2026-11-21 over four shapes of DeepSeek-V3 and Llama-3-70B.
# Few rows: the weight takes the 64-row side of the matrix unit, and k is split until the chip is full (see `split`).
BANDS: Bands = (
    (16, Tile(block_m=16, block_n=64, block_k=STEP, warps=4, stages=5, swap=True)),
    (32, Tile(block_m=32, block_n=64, block_k=STEP, warps=4, stages=5, swap=True)),
    (64, Tile(block_m=64, block_n=64, block_k=STEP, warps=4, stages=4)),
    (128, Tile(block_m=64, block_n=64, block_k=STEP, warps=4, stages=5)),
    (512, Tile(block_m=64, block_n=128, block_k=STEP, warps=4, stages=4)),
    (None, Tile(block_m=128, block_n=128, block_k=STEP, warps=8, stages=4, group_m=32)),
)


@lru_cache(maxsize=4096)
def tiles(m: int, n: int, k: int, multiprocessors: int, shared_memory_kib: int) -> Tile | Strip:
    """The work of one program for this size of product on such a chip."""
    if m == 1:
        return strip(k)
    tile = fit(choose(BANDS, m), 1, shared_memory_kib)
    return split(tile, m, n, k, multiprocessors)


def candidates(m: int, n: int, k: int) -> tuple[Tile | Strip, ...]:
    """Tiles worth timing for this size: 8 to 12 of them."""
    if m == 1:
        shapes = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 4), (4, 4096, 8), (8, 1024, 4), (8, 2048, 8), (16, 512, 4))
        return (*(Strip(*s) for s in shapes), Tile(16, 32, STEP, 4, 6), Tile(16, 32, STEP, 4, 4, split_k=2))
    bm = 16 if m <= 16 else 32 if m <= 32 else 64
    if m <= 64:
        return (
            Tile(bm, 16, STEP, 4, 8), Tile(bm, 32, STEP, 4, 6), Tile(bm, 32, STEP, 4, 4, split_k=2),
            Tile(bm, 64, STEP, 4, 5), Tile(bm, 64, STEP, 4, 4, split_k=2), Tile(bm, 64, STEP, 4, 4, split_k=4),
            Tile(bm, 64, STEP, 4, 5, swap=True), Tile(bm, 64, STEP, 4, 4, split_k=2, swap=True),
            Tile(bm, 64, STEP, 4, 4, split_k=4, swap=True), Tile(bm, 128, STEP, 4, 4, split_k=4, swap=True),
        )  # fmt: skip
    return (
        Tile(64, 64, STEP, 4, 5), Tile(64, 128, STEP, 4, 4), Tile(128, 64, STEP, 4, 4), Tile(128, 128, STEP, 8, 4),
        Tile(128, 128, STEP, 8, 3), Tile(128, 128, STEP, 4, 4), Tile(128, 128, STEP, 8, 4, group_m=32),
        Tile(128, 256, STEP, 8, 3), Tile(256, 128, STEP, 8, 3), Tile(128, 128, STEP, 8, 4, swap=True),
    )  # fmt: skip


def product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None,
    output: torch.dtype, chip: Chip, tile: Tile | Strip | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times weight transposed, scaled, plus bias, rounded once.

    x             [m, k] e4m3, columns contiguous, m at least 1
    x_scale       f32 [m, 1], or one number
    weight        [n, k] e4m3, columns contiguous
    weight_scale  f32 [n], or one number
    bias          [n] any float dtype, or None
    tile          None lets `tiles` choose
    returns       [m, n] of dtype output, contiguous
    errors        KernelInputError if a tensor does not fit
    """
    check("triton_fp8_rowwise", x, weight, bias)
    (m, k), n = x.shape, weight.shape[0]
    fits = x_scale.dtype == weight_scale.dtype == torch.float32 and x_scale.numel() in (1, m)
    fits = fits and x_scale.is_contiguous() and weight_scale.numel() in (1, n) and weight_scale.is_contiguous()
    found = f"{tuple(x_scale.shape)} and {tuple(weight_scale.shape)}"
    require(fits, "triton_fp8_rowwise", f"f32 scales of 1 or {m} and of 1 or {n} numbers", found)
    tile = tile or tiles(m, n, k, chip.multiprocessors, chip.shared_memory_kib)
    if isinstance(tile, Tile):
        return multiply(x, x_scale.view(-1), weight, weight_scale.view(-1), bias, output, tile, chip, block=False)
    out = torch.empty(1, n, dtype=torch.float32 if chip.interpreted else output, device=x.device)
    multiply_row(
        x.view(torch.uint8), x_scale, weight.view(torch.uint8), weight_scale.view(-1), bias, out, tile, chip,
        group=STEP, input="one", scales="channel", nan_codes=True,
    )  # fmt: skip
    return out.to(output)
