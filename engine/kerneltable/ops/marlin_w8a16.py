"""FP8 weights with 16-bit inputs by mma.sync (marlin_w8a16.cu): which instance serves a product, and its launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, POINTER
from kerneltable.ops.cuda_parts import add_parts
from kerneltable.ops.cuda_vectors import Launch
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, DEPTH, EXACT_EXPONENTS
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, output_of

TYPES = (*(POINTER,) * 6, *(INT32,) * 4)
MOST_PARTS = 8


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

    def tiles(self, m: int, n: int) -> int:
        """Blocks of threads that cover the outputs."""
        return ceil_div(n, self.rows) * ceil_div(m, self.columns)


NARROW, FLAT = Variant(1, 2, 1, 4, 8, 128, 4), Variant(1, 4, 1, 2, 8, 128, 4, 2)
VARIANTS = {
    8: (NARROW, FLAT),
    16: (Variant(1, 2, 1, 4, 16, 64, 4, 2), Variant(1, 4, 1, 2, 16, 128, 4, 2)),
    32: (Variant(1, 4, 1, 2, 32, 64, 4, 2), Variant(2, 4, 1, 2, 32, 64, 3)),
    64: (Variant(1, 4, 1, 2, 64, 64, 4), Variant(2, 4, 1, 1, 64, 64, 4, 2)),
    128: (Variant(2, 4, 2, 1, 128, 64, 3),),
}
"""By the columns of a tile, the instances that `variant` chooses from. All fit into 99 KiB."""

ADDING = 64 * 1024
"""What a second launch costs, in bytes that a multiprocessor reads meanwhile: 2 us at 32 GB/s."""


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int) -> tuple[Variant, int]:
    """The instance for a product and the parts of k: those that leave the busiest multiprocessor least to do."""
    columns = next((c for c in VARIANTS if c >= m), 128)
    most = max(1, min(MOST_PARTS, ceil_div(k, DEPTH) // 8))
    choices = [(one, parts) for parts in range(1, most + 1) for one in VARIANTS[columns]]
    product = Product(m, n, k, multiprocessors)
    return min(choices, key=lambda choice: work(choice[0], choice[1], product))


def work(choice: Variant, parts: int, product: Product) -> float:
    """What the busiest multiprocessor does, in bytes of weights that it could read meanwhile.

    An input comes from the second-level cache, at twice the rate; a multiplication and an addition cost 0.019 bytes,
    since a multiprocessor reads 19 bytes and multiplies 1024 pairs in a cycle (H200). Parts are written and read once.
    """
    m, n, k, multiprocessors = product
    blocks = ceil_div(choice.tiles(m, n) * parts, multiprocessors)
    read, products = choice.rows + choice.columns, 0.019 * choice.rows * choice.columns
    adding = ADDING + 8 * parts * m * n / multiprocessors if parts > 1 else 0
    return blocks * (k / parts) * max(read, products) + adding


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: all that any m, n and k can ask for, and the sum of parts."""
    if input not in EXACT_EXPONENTS or not any(products):
        return
    for scales in (BY_ROW, BY_BLOCK, BY_32):
        for choice in (one for choices in VARIANTS.values() for one in choices):
            yield instance_of(choice, scales, input, output)


def instance_of(choice: Variant, scales: int, dtype: str, output: str) -> Instance:
    """The instance for an input dtype ("bf16", "f16") and an output dtype."""
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
    one, parts = choice or variant(m, n, k, chip.multiprocessors)
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
