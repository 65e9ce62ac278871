"""Block-scaled W8A8: e4m3 inputs with a scale per 1x128, e4m3 weights with a scale per 128x128."""

from __future__ import annotations

from functools import lru_cache

import torch

from kerneltable.ops.triton_chip import Bands, Chip, Strip, Tile, choose, fit, require, split, strip
from kerneltable.ops.triton_fp8_product import check, multiply
from kerneltable.ops.triton_gemv import multiply_row

BLOCK = 128

# Measured on an H200 (132 multiprocessors, 227 KiB) on 2026-11-21 over four shapes of DeepSeek-V3 and Llama-3-70B.
# Few rows: the weight takes the 64-row side of the matrix unit, and k is split until the chip is full (see `split`).
BANDS: Bands = (
    (16, Tile(block_m=16, block_n=64, block_k=128, warps=4, stages=5, swap=True)),
    (32, Tile(block_m=32, block_n=64, block_k=128, warps=4, stages=5, swap=True)),
    (64, Tile(block_m=64, block_n=64, block_k=128, warps=4, stages=4)),
    (128, Tile(block_m=64, block_n=64, block_k=128, warps=4, stages=5)),
    (512, Tile(block_m=64, block_n=128, block_k=128, warps=4, stages=4)),
    (None, Tile(block_m=128, block_n=128, block_k=128, warps=8, stages=4, group_m=32)),
)

LARGE = 2**27
"""Weights of this many bytes keep wider tiles busy, a single row too."""

LARGE_BANDS: Bands = (
    (16, Tile(block_m=16, block_n=128, block_k=128, warps=4, stages=4, swap=True)),
    (32, Tile(block_m=32, block_n=128, block_k=128, warps=4, stages=4, swap=True)),
    (64, Tile(block_m=64, block_n=128, block_k=128, warps=8, stages=4)),
)


@lru_cache(maxsize=4096)
def tiles(m: int, n: int, k: int, multiprocessors: int, shared_memory_kib: int) -> Tile | Strip:
    """The work of one program for this size of product on such a chip."""
    large = n * k >= LARGE
    if m == 1 and not large:
        return strip(k)
    tile = choose(LARGE_BANDS if large and m <= 64 else BANDS, m)
    tile = fit(tile, 1, shared_memory_kib)
    return split(tile, m, n, k, multiprocessors)


def candidates(m: int, n: int, k: int) -> tuple[Tile | Strip, ...]:
    """Tiles worth timing for this size: 8 to 12 of them."""
    if m == 1:
        strips = tuple(
            Strip(bn, bk, w)
            for bn, bk, w in (
                (2, 2048, 4),
                (4, 1024, 4),
                (4, 2048, 4),
                (4, 4096, 8),
                (8, 1024, 4),
                (8, 2048, 8),
                (16, 512, 4),
            )
        )
        return (
            *strips,
            Tile(16, 32, BLOCK, 4, 6),
            Tile(16, 32, BLOCK, 4, 4, split_k=2),
            Tile(16, 64, BLOCK, 4, 4, swap=True, split_k=4),
        )
    bm = 16 if m <= 16 else 32 if m <= 32 else 64
    if m <= 64:
        return (
            Tile(bm, 16, BLOCK, 4, 8), Tile(bm, 32, BLOCK, 4, 6), Tile(bm, 32, BLOCK, 4, 4, split_k=2),
            Tile(bm, 64, BLOCK, 4, 5), Tile(bm, 64, BLOCK, 4, 4, split_k=2), Tile(bm, 64, BLOCK, 4, 4, split_k=4),
            Tile(bm, 64, BLOCK, 4, 5, swap=True), Tile(bm, 64, BLOCK, 4, 4, split_k=2, swap=True),
            Tile(bm, 64, BLOCK, 4, 4, split_k=4, swap=True), Tile(bm, 128, BLOCK, 4, 4, split_k=4, swap=True),
            Tile(bm, 128, BLOCK, 8, 4, split_k=4), Tile(bm, 32, BLOCK, 2, 6),
        )  # fmt: skip
    return (
        Tile(64, 64, BLOCK, 4, 5), Tile(64, 128, BLOCK, 4, 4), Tile(64, 128, BLOCK, 4, 4, split_k=2),
        Tile(128, 64, BLOCK, 4, 4), Tile(128, 128, BLOCK, 8, 4), Tile(128, 128, BLOCK, 8, 3),
        Tile(128, 128, BLOCK, 4, 4), Tile(128, 128, BLOCK, 8, 4, group_m=32), Tile(128, 256, BLOCK, 8, 3),
        Tile(256, 128, BLOCK, 8, 3), Tile(128, 128, BLOCK, 8, 4, swap=True), Tile(64, 256, BLOCK, 8, 4),
    )  # fmt: skip


def product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None,
    output: torch.dtype, chip: Chip, tile: Tile | Strip | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times weight transposed, scaled, plus bias, rounded once.

    x             [m, k] e4m3, columns contiguous, m at least 1
    x_scale       [m, ceil(k / 128)] f32, contiguous
    weight        [n, k] e4m3, columns contiguous
    weight_scale  [ceil(n / 128), ceil(k / 128)] f32, contiguous
    bias          [n] any float dtype, or None
    tile          None lets `tiles` choose
    returns       [m, n] of dtype output, contiguous
    errors        KernelInputError if a tensor does not fit
    """
    check("triton_fp8_block", x, weight, bias)
    (m, k), n = x.shape, weight.shape[0]
    blocks = -(-k // BLOCK)
    fits = tuple(x_scale.shape) == (m, blocks) and tuple(weight_scale.shape) == (-(-n // BLOCK), blocks)
    fits = fits and x_scale.dtype == weight_scale.dtype == torch.float32
    fits = fits and x_scale.is_contiguous() and weight_scale.is_contiguous()
    found = f"{tuple(x_scale.shape)} and {tuple(weight_scale.shape)}"
    require(fits, "triton_fp8_block", f"f32 scales [{m}, {blocks}] and [{-(-n // BLOCK)}, {blocks}]", found)
    tile = tile or tiles(m, n, k, chip.multiprocessors, chip.shared_memory_kib)
    if isinstance(tile, Tile):
        return multiply(x, x_scale, weight, weight_scale, bias, output, tile, chip, block=True)
    out = torch.empty(1, n, dtype=torch.float32 if chip.interpreted else output, device=x.device)
    multiply_row(
        x.view(torch.uint8), x_scale, weight.view(torch.uint8), weight_scale, bias, out, tile, chip,
        group=BLOCK, input="block", scales="block", nan_codes=True,
    )  # fmt: skip
    return out.to(output)
