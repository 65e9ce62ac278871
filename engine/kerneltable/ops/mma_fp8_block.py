"""Block-scaled FP8 products with mma.sync (csrc/cuda/mma_fp8_block.cu): which instance serves a product, its launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, POINTER
from kerneltable.ops.cuda_parts import add_parts
from kerneltable.ops.cuda_vectors import Launch
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, output_of
from kerneltable.ops.mma_work import Tiling, fitting, work

DEPTH = 128
TYPES = (*(POINTER,) * 7, *(INT32,) * 4)
MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """An instance of mma_fp8_block.cu: outputs of a block of threads, how its warps share them, stages of copies."""

    rows: int
    columns: int
    warps_m: int
    warps_n: int
    warps_k: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n * self.warps_k

    @property
    def shared_bytes(self) -> int:
        """Stages of codes and scales, then the sums in their place."""
        stage = self.warps_k * ((self.rows + self.columns) * DEPTH + self.rows * 4 + 16)
        return max(self.stages * stage, self.warps_k * self.rows * (self.columns + 8) * 4)

    def tiles(self, m: int, n: int) -> int:
        """Blocks of threads that cover the outputs."""
        return ceil_div(m, self.rows) * ceil_div(n, self.columns)


PAIRED = {
    16: (Variant(16, 32, 1, 1, 4, 3), Variant(16, 32, 1, 1, 4, 2)),
    32: (Variant(32, 64, 1, 4, 1, 4),),
    64: (Variant(64, 64, 2, 2, 1, 4), Variant(64, 64, 2, 2, 1, 3)),
}
"""By the rows of a tile: instances of four warps, which want a second block beside them; the last one is for 99 KiB."""

LARGE = Variant(128, 128, 4, 2, 1, 3)
"""Keeps a multiprocessor busy by itself."""

MULTIPLYING = 0.085
"""What a multiplication and an addition cost, in bytes fetched: 1390 of them in a nanosecond (H200, see mma_work)."""


def choices(shared_bytes: int) -> dict[int, Variant]:
    """By the rows of a tile, the instances of a chip whose blocks may use so much shared memory."""
    paired = {
        rows: next((one for one in those if fitting(one.shared_bytes, shared_bytes) > 1), those[-1])
        for rows, those in PAIRED.items()
    }
    return {**paired, LARGE.rows: LARGE}


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int, shared_bytes: int) -> Variant:
    """The instance for a product: with the least to do, of those whose tiles are no higher than they need be."""
    found = choices(shared_bytes)
    if m <= 64:
        return next(found[rows] for rows in found if rows >= m)
    product = Product(m, n, k, multiprocessors)
    return min((LARGE, found[64]), key=lambda one: work(tiling(one, m, n), parts_of(one, *product), product))


@lru_cache(maxsize=4096)
def parts_of(choice: Variant, m: int, n: int, k: int, multiprocessors: int) -> int:
    """Parts of k that leave least to do, as long as each part has two stages of work."""
    most = max(1, min(MOST_PARTS, ceil_div(k, DEPTH) // (2 * choice.warps_k)))
    tiles, product = tiling(choice, m, n), Product(m, n, k, multiprocessors)
    return min(range(1, most + 1), key=lambda parts: work(tiles, parts, product))


def tiling(choice: Variant, m: int, n: int) -> Tiling:
    """How an instance divides a product."""
    rows, columns = choice.rows, choice.columns
    paired = choice != LARGE
    return Tiling(choice.tiles(m, n), rows + columns + MULTIPLYING * rows * columns, 1 + paired, paired)


def instances(products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: all that any m, n and k can ask for on any chip, with an output dtype."""
    if any(products):
        for choice in (*chain.from_iterable(PAIRED.values()), LARGE):
            yield instance_of(choice, output)


def instance_of(choice: Variant, output: str) -> Instance:
    """The instance for an output dtype ("bf16", "f16", "f32")."""
    numbers = {
        "ROWS": choice.rows, "COLUMNS": choice.columns, "STAGES": choice.stages, "OUT": DTYPE_CODES[output],
        "WARPS_M": choice.warps_m, "WARPS_N": choice.warps_n, "WARPS_K": choice.warps_k,
    }  # fmt: skip
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance("cuda/mma_fp8_block.cu", "mma_fp8_block", TYPES, choice.shared_bytes, defines)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, output: str, chip: CudaChip, device: int,
    choice: Variant | None = None, parts: int | None = None,
) -> Launch:  # fmt: skip
    """The instance and the grid for a product of [m, k] with [n, k]; what is None is chosen here."""
    choice = choice or variant(m, n, k, chip.multiprocessors, chip.shared_bytes)
    parts = parts or parts_of(choice, m, n, k, chip.multiprocessors)
    function = load(instance_of(choice, output), chip, device)
    return Launch(function, (choice.tiles(m, n), parts, 1), (choice.threads, 1, 1))


def product(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, output: str, chip: CudaChip, choice: Variant | None = None, parts: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once; with parts of k in a second launch.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [ceil(k / 128), m padded to a multiple of 4] f32, as quantize_block_by_column gives them
    weight        [n, k] e4m3, contiguous, starting at a multiple of 16 bytes; n and k multiples of 16
    weight_scale  [ceil(n / 128), ceil(k / 128)] f32, contiguous
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    parts         1 to ceil(k / 128) parts of k, added in order; None lets `parts_of` choose
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, output, chip, codes.device.index or 0, choice, parts)
    out = output_of(m, n, output, codes.device)
    count = launch.grid[1]
    sums = torch.empty(count, m, n, dtype=torch.float32, device=codes.device) if count > 1 else None
    operands = (codes, scales, weight, weight_scale, bias, out, sums)
    pointers = (0 if one is None else one.data_ptr() for one in operands)
    launch.function(launch.grid, launch.block, (*pointers, m, n, k, scales.stride(0)))
    return out if sums is None else add_parts(sums, bias, out, output, chip)
