"""Block-scaled FP8 products of some rows on Hopper in one launch, whose blocks quantize the input together.

Codes, scales and sums are those of the two launches of hopper_fp8_block, bit for bit. Blocks agree by counters, which
the launches on a stream share; so a CUDA graph, which may be replayed beside anything, holds the two launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, Function, TensorMap
from kerneltable.ops.cuda_vectors import width_of
from kerneltable.ops.hopper import ceil_div
from kerneltable.ops.hopper_fp8_block import Scratch
from kerneltable.ops.hopper_fp8_choice import DEPTH, FEW_ROWS, Stream, variant
from kerneltable.ops.hopper_fp8_fused import FUSED_ROWS, numbers_of

SIZES = (INT32, INT32, INT32, INT32, INT32, INT64)
TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, *[POINTER] * 7, *SIZES)
CONSUMERS = 128
"""Threads of a block that quantize, and multiply."""

COUNTER_BYTES = 256
"""Of the counters by which the blocks of a launch agree; codes and scales begin behind them."""

MOST_BYTES = 60_000_000
"""Of a weight: a call takes less time there than the host takes for two launches. The device alone is 2 % slower with
one (H200, ten weights of three models at 8 to 64 rows, 2026-11-22; 0.83 to 1.06 times the speed of two)."""


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output.

    Of larger weights than MOST_BYTES too: `usual` products stand for smaller ones between them.
    """
    choices = (variant.__wrapped__(*product) for product in products if product.m > FUSED_ROWS)
    yield from dict.fromkeys(instance_of(one, input, output) for one in choices if isinstance(one, Stream))


def instance_of(choice: Stream, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32")."""
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers_of(choice, input, output).items()))
    return Instance(
        "cuda/hopper_fp8_block_once.cu", "hopper_fp8_block_once", TYPES, choice.shared_bytes, defines, early=True
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    shares   parts of the input that blocks quantize
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shares: int


def serves(m: int, n: int, k: int, chip: CudaChip) -> bool:
    """Whether a product of [m, k] with [n, k] is one launch of this kind, where it can be."""
    return m > FUSED_ROWS and n * k <= MOST_BYTES and isinstance(variant(m, n, k, chip.multiprocessors), Stream)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int, choice: Stream | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose.

    errors   ValueError for more rows than the instance takes
    """
    found = choice or variant(m, n, k, chip.multiprocessors)
    if not isinstance(found, Stream) or m > found.columns:
        raise ValueError(f"hopper_fp8_once: m must be at most {getattr(found, 'columns', 0)}; found {m}")
    instance = instance_of(found, input, output)
    blocks = ceil_div(n, 64) * found.split
    units = CONSUMERS * width_of(input, DEPTH) // DEPTH
    shares = min(blocks, ceil_div(m * ceil_div(k, DEPTH), units))
    return Launch(load(instance, chip, device), (blocks, 1, 1), (CONSUMERS + 32, 1, 1), shares)


@lru_cache(maxsize=4096)
def words(k: int) -> int:
    """32-bit words that calls with k columns need, a power of two: counters, then codes and scales of FEW_ROWS rows."""
    needed = COUNTER_BYTES + FEW_ROWS * (k + 4 * ceil_div(k, DEPTH)) + 256
    return 1 << (ceil_div(needed, 4) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Place:
    """Where calls with one number of rows leave codes and scales between the halves of a launch, on one stream.

    addresses   of codes, scales and counters
    padded      scales of a block of k
    maps        addresses of the maps of codes, weight and scales, and these, which keep them there
    """

    addresses: tuple[int, int, int]
    padded: int
    maps: tuple[int, ...]
    held: tuple[TensorMap, ...]


def place(memory: int, scratch: Scratch, weight: TensorMap) -> Place:
    """The place in a stream's memory, of `words` words. Launches on a stream follow each other, so all may use it."""
    codes = memory + COUNTER_BYTES
    of_codes, of_scales = scratch.maps(codes)
    held = (of_codes, weight, of_scales)
    return Place((codes, codes + scratch.scales, memory), scratch.padded, tuple(one.address for one in held), held)
