"""FP8 weights with 16-bit inputs by mma.sync (marlin_w8a16.cu): which instance serves a product, and its launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, POINTER
from kerneltable.ops.cuda_parts import add_parts
from kerneltable.ops.cuda_vectors import Launch
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, DEPTH, EXACT_EXPONENTS
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, output_of
from kerneltable.ops.mma_work import Tiling, fitting, work

TYPES = (*(POINTER,) * 6, *(INT32,) * 4)
MOST_PARTS = 8

LEAST_SHARED = 99 * 1024
"""Of the chips that run this, the least that a block may use; every instance fits."""

LEAST_COPIED = 64 * 1024
"""Bytes of stages below which a multiprocessor waits for memory."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An instance of marlin_w8a16.cu: its compile-time numbers, explained there."""

    strips: int
    down: int
    across: int
    groups: int
    columns: int
    depth: int
    stages: int
    blocks: int = 1

    @property
    def rows(self) -> int:
        """Rows of the weight that a block of threads computes."""
        return 16 * self.strips * self.down

    @property
    def threads(self) -> int:
        return 32 * self.down * self.across * self.groups

    def shared_bytes(self, scales: int) -> int:
        """Stages of inputs, codes and exponents, then the sums in their place."""
        stage = self.columns * self.depth * 2 + self.rows * (self.depth + (4 if scales == BY_32 else 0))
        return max(self.groups * self.stages * stage, self.groups * self.columns * (self.rows + 4) * 4)

    def within(self, scales: int) -> Variant:
        """The same with a stage fewer, where exponents beside the codes would not fit otherwise."""
        return self if self.shared_bytes(scales) <= LEAST_SHARED else replace(self, stages=self.stages - 1)

    def tiles(self, m: int, n: int) -> int:
        """Blocks of threads that cover the outputs."""
        return ceil_div(n, self.rows) * ceil_div(m, self.columns)


VARIANTS = {
    8: (Variant(1, 2, 1, 4, 8, 128, 3, 2), Variant(1, 4, 1, 2, 8, 128, 3, 3)),
    16: (Variant(2, 2, 1, 4, 16, 64, 4, 2), Variant(1, 4, 1, 2, 16, 64, 4, 3)),
    32: (Variant(1, 4, 1, 2, 32, 64, 4, 2), Variant(2, 4, 1, 2, 32, 64, 3)),
    64: (Variant(2, 4, 1, 2, 64, 64, 3), Variant(1, 4, 1, 2, 64, 64, 4)),
}
"""For few rows, by the columns of a tile: the instances that `variant` chooses from."""

PAIRED, WIDE = Variant(2, 4, 1, 1, 64, 64, 4, 2), Variant(2, 4, 2, 1, 128, 64, 3)
"""For more rows: four warps, which want a second block beside them; eight, where two such blocks do not fit."""

MULTIPLYING = 0.066
"""What a multiplication and an addition cost, in bytes fetched: 1790 of them in a nanosecond (H200, see mma_work)."""


def choices(shared_bytes: int) -> dict[int, tuple[Variant, ...]]:
    """By the rows of the input, the instances of a chip whose blocks may use so much shared memory."""
    many = PAIRED if fitting(PAIRED.shared_bytes(BY_32), shared_bytes) > 1 else WIDE
    return {**VARIANTS, 128: (many,)}


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int, shared_bytes: int) -> tuple[Variant, int]:
    """The instance for a product and the parts of k: those that leave the busiest multiprocessor least to do."""
    found = choices(shared_bytes)
    fits = found[next((rows for rows in found if rows >= m), 128)]
    most = max(1, min(MOST_PARTS, ceil_div(k, DEPTH) // 8))
    pairs = [(one, parts) for parts in range(1, most + 1) for one in fits]
    product = Product(m, n, k, multiprocessors)
    return min(pairs, key=lambda pair: work(tiling(pair[0], m, n, shared_bytes), pair[1], product))


def tiling(choice: Variant, m: int, n: int, shared_bytes: int) -> Tiling:
    """How an instance divides a product on a chip whose blocks may use so much shared memory."""
    rows, columns, own = choice.rows, choice.columns, choice.shared_bytes(BY_ROW)
    together = max(1, min(choice.blocks, fitting(own, shared_bytes)))
    waits = choice.threads <= 128 or own < LEAST_COPIED
    return Tiling(choice.tiles(m, n), rows + 2 * columns + MULTIPLYING * rows * columns, together, waits)


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: all that any m, n and k can ask for, and the sum of parts."""
    if input not in EXACT_EXPONENTS or not any(products):
        return
    for scales in (BY_ROW, BY_BLOCK, BY_32):
        for choice in (*chain.from_iterable(VARIANTS.values()), PAIRED, WIDE):
            yield instance_of(choice, scales, input, output)


def instance_of(choice: Variant, scales: int, dtype: str, output: str) -> Instance:
    """The instance for an input dtype ("bf16", "f16") and an output dtype."""
    choice = choice.within(scales)
    numbers = {
        "STRIPS": choice.strips, "DOWN": choice.down, "ACROSS": choice.across, "GROUPS": choice.groups,
        "COLUMNS": choice.columns, "DEPTH": choice.depth, "STAGES": choice.stages, "BLOCKS": choice.blocks,
        "SCALES": scales, "IN": DTYPE_CODES[dtype], "OUT": DTYPE_CODES[output],
    }  # fmt: skip
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance("cuda/marlin_w8a16.cu", "marlin_w8a16", TYPES, choice.shared_bytes(scales), defines)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, scales: int, dtypes: tuple[str, str], chip: CudaChip, device: int,
    choice: tuple[Variant, int] | None = None,
) -> Launch:  # fmt: skip
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    one, parts = choice or variant(m, n, k, chip.multiprocessors, chip.shared_bytes)
    function = load(instance_of(one, scales, *dtypes), chip, device)
    return Launch(function, (ceil_div(n, one.rows), ceil_div(m, one.columns), parts), (one.threads, 1, 1))


def product(
    x: torch.Tensor, packed: torch.Tensor, weight_scale: torch.Tensor | None, bias: torch.Tensor | None, n: int,
    scales: int, dtypes: tuple[str, str], chip: CudaChip, choice: tuple[Variant, int] | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times the packed weight transposed, scaled, plus bias, rounded once; with parts of k in a second launch.

    x             [m, k] bf16 or f16, rows a multiple of 16 bytes apart from such an address on, m at least 1
    packed        as fragment_tiles.pack gives it; k a multiple of 8, n of 4
    weight_scale  f32: [n] (BY_ROW), [ceil(n / 128), ceil(k / 128)] (BY_BLOCK), None (BY_32)
    bias          [n] f32, contiguous, or None
    dtypes        of input and output, e.g. ("bf16", "bf16")
    choice        an instance and 1 to 65,535 parts of k, added in order; None lets `variant` choose
    returns       [m, n] of the output dtype, contiguous
    """
    m, k = x.shape
    launch = prepare(m, n, k, scales, dtypes, chip, x.device.index or 0, choice)
    out, parts = output_of(m, n, dtypes[1], x.device), launch.grid[2]
    sums = torch.empty(parts, m, n, dtype=torch.float32, device=x.device) if parts > 1 else None
    pointers = (0 if one is None else one.data_ptr() for one in (weight_scale, bias, out, sums))
    launch.function(launch.grid, launch.block, (x.data_ptr(), packed.data_ptr(), *pointers, m, n, k, x.stride(0)))
    return out if sums is None else add_parts(sums, bias, out, dtypes[1], chip)
