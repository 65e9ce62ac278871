"""Block-scaled FP8 products on Hopper in one launch, whose blocks quantize the input together.

Codes, scales and sums are those of the two launches of hopper_fp8_block, bit for bit. Blocks agree by counters, which
the launches on a stream share; so a CUDA graph, which may be replayed beside anything, holds the two launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

from kerneltable.ops import hopper_fp8_block as apart_op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, Function, TensorMap
from kerneltable.ops.cuda_repeated import Repeated
from kerneltable.ops.cuda_vectors import width_of
from kerneltable.ops.hopper import ceil_div
from kerneltable.ops.hopper_fp8_block import Scratch
from kerneltable.ops.hopper_fp8_choice import DEPTH, FEW_ROWS, Choice, Stream, variant
from kerneltable.ops.hopper_fp8_fused import FUSED_ROWS
from kerneltable.ops.hopper_fp8_launch import CONSUMERS, Place, instance
from kerneltable.ops.hopper_fp8_launch import Launch as ProductLaunch

TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, *[POINTER] * 7, *[INT32] * 5, INT64)
STREAM_CONSUMERS = 128
"""Threads of a block that quantize, and multiply, where the weight is streamed."""

COUNTER_BYTES = 256
"""Of the counters by which the blocks of a launch agree; codes and scales begin behind them."""

MOST_BYTES = 60_000_000
"""Of a weight: a call takes less time there than the host takes for two launches. The device alone is 2 % slower with
one (H200, ten weights of three models at 8 to 64 rows, 2026-11-22; 0.83 to 1.06 times the speed of two)."""

MOST_CODES, MOST_STEPS = 2**21, 5e9
"""Of a product with more rows than FEW_ROWS, m * k and m * n * k: beyond, two launches end sooner. 4096 x 4096 at 256
rows 12.9 instead of 14.3 us a call, at 512 18.3 instead of 17.3; 2048 x 2048 at 1024 13.2 instead of 16.1; 2112 x 7168
at 256 16.5 instead of 15.2 (H200, 2026-11-23)."""


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output.

    Of larger weights than MOST_BYTES too: `usual` products stand for smaller ones between them.
    """
    choices = (variant.__wrapped__(*product) for product in products if product.m > FUSED_ROWS)
    yield from dict.fromkeys(instance_of(one, input, output) for one in choices if isinstance(one, Stream))


def instance_of(choice: Stream, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32") that streams the weight."""
    return instance("hopper_fp8_block_once", TYPES, choice, output, input)


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
    if isinstance(variant(m, n, k, chip.multiprocessors), Stream):
        return m > FUSED_ROWS and n * k <= MOST_BYTES
    return small(m, n, k)


def small(m: int, n: int, k: int, most_steps: float = MOST_STEPS) -> bool:
    """Whether a product for which the weight is not streamed is one launch, unless its tiles are divided."""
    return m * k <= MOST_CODES and m * n * k <= most_steps


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int, choice: Choice | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose.

    errors   ValueError for more rows than the instance takes, and for one that divides tiles
    """
    found = choice or variant(m, n, k, chip.multiprocessors)
    if not isinstance(found, Stream):
        launch = apart_op.prepare(m, n, k, input, output, chip, device, found)
        if launch.divided:
            raise ValueError(f"hopper_fp8_once: no tile may be divided; found {launch.divided}")
        shares = min(launch.grid[0], ceil_div(m * ceil_div(k, DEPTH), units_of(input, CONSUMERS)))
        return Launch(launch.function, launch.grid, launch.block, shares)
    if m > found.columns:
        raise ValueError(f"hopper_fp8_once: m must be at most {found.columns}; found {m}")
    blocks = ceil_div(n, 64) * found.split
    shares = min(blocks, ceil_div(m * ceil_div(k, DEPTH), units_of(input, STREAM_CONSUMERS)))
    function = load(instance_of(found, input, output), chip, device)
    return Launch(function, (blocks, 1, 1), (STREAM_CONSUMERS + 32, 1, 1), shares)


def units_of(input: str, threads: int) -> int:
    """Rows and 128 columns that so many threads quantize at a time."""
    return threads * width_of(input, DEPTH) // DEPTH


@lru_cache(maxsize=4096)
def words(k: int, m: int = FEW_ROWS) -> int:
    """32-bit words that calls with k columns and up to m rows need, a power of two: counters, then codes and scales."""
    needed = COUNTER_BYTES + ceil_div(m, 4) * 4 * (k + 4 * ceil_div(k, DEPTH)) + 256
    return 1 << (ceil_div(needed, 4) - 1).bit_length()


def place(
    memory: int, stream: int, launch: Launch, product: ProductLaunch, sizes: tuple[int, int, int], scratch: Scratch,
    weight: TensorMap, factors: TensorMap | None, scales: int,
) -> Place:  # fmt: skip
    """The place of calls in a stream's memory, of `words` words. Launches on a stream follow each other, so all may use
    it.

    product  the second of two launches
    sizes    m, n, k
    factors  the map of the weight's scales; None: threads read them, from the address `scales`
    """
    m, n, _ = sizes
    codes = memory + COUNTER_BYTES
    of_codes, of_scales = scratch.maps(codes)
    addresses = (None, codes, codes + scratch.scales, memory, *(() if factors else (scales,)), None, None)
    arguments = (*addresses, *sizes, scratch.padded, launch.shares, None)
    maps: tuple[TensorMap | None, ...] = (of_codes, weight, of_scales, *((factors,) if factors else ()))
    outputs = None
    if product.divided is not None:  # no tile is divided
        arguments, maps = (*arguments, 0, 0, 0), (*maps, None)
        outputs = lru_cache(maxsize=64)(partial(product.output_map, m=m, n=n))
    return Place(Repeated(launch.function, launch.grid, launch.block, stream, arguments, maps), outputs)
