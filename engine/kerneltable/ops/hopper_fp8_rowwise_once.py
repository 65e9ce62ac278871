"""FP8 products with scales of rows on Hopper in one launch, whose blocks quantize the input together.

Codes, scales and sums are those of a quantizer's launch and that of hopper_fp8_rowwise, bit for bit. Blocks agree by
counters, which the launches on a stream share; so a CUDA graph, which may be replayed beside anything, holds the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache, partial

from kerneltable.ops import hopper_fp8_rowwise as apart_op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, TensorMap
from kerneltable.ops.cuda_repeated import Repeated
from kerneltable.ops.hopper import ceil_div, tensor_map
from kerneltable.ops.hopper_fp8_choice import FEW_ROWS, Stream, variant
from kerneltable.ops.hopper_fp8_launch import CONSUMERS, Launch, Place, instance, launch_of
from kerneltable.ops.hopper_fp8_once import COUNTER_BYTES, MOST_BYTES, small

MOST_STEPS = 13e9
"""As hopper_fp8_once has them, but more: two launches take the host longer here, 22 to 27 us. 6144 x 4096 at 512 rows
25.4 instead of 27.1 us a call, 2112 x 7168 at 256 17.1 instead of 24.0, 7168 x 2048 at 1024 33.5 instead of 35.0 (H200,
2026-11-23)."""

TYPES = (BY_VALUE, BY_VALUE, *[POINTER] * 9, *[INT32] * 4, INT64)


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output."""
    choices = (variant.__wrapped__(*product) for product in products if product.m <= FEW_ROWS)
    yield from dict.fromkeys(instance_of(one, input, output) for one in choices if isinstance(one, Stream))


def instance_of(choice: Stream, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32") that streams the weight."""
    return instance("hopper_fp8_rowwise_once", TYPES, choice, output, input)


def serves(m: int, n: int, k: int) -> bool:
    """Whether a product of [m, k] with [n, k] is one launch, where it can be: unless its tiles are divided.

    Eager calls take 0.40 to 0.61 of the time of two up to 38 MB of weight, 0.81 to 0.96 at 52 MB, 1.01 to 1.15 from
    67 MB on (H200, 1 to 64 rows, 2026-11-23).
    """
    return n * k <= MOST_BYTES if m <= FEW_ROWS else small(m, n, k, MOST_STEPS)


@lru_cache(maxsize=65536)
def prepare(m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]: of few rows those of their own, of more the ones
    that make two launches, where no tiles are divided."""
    choice = variant(m, n, k, chip.multiprocessors)
    if not isinstance(choice, Stream):
        return apart_op.prepare(m, n, k, input, output, chip, device)
    function = load(instance_of(choice, input, output), chip, device)
    return launch_of(function, choice, m, n, output, chip.multiprocessors)


def shares_of(m: int, launch: Launch) -> tuple[int, int]:
    """How more rows than FEW_ROWS are quantized: warps that have one together, as many as blocks allow, and shares."""
    blocks, warps = launch.grid[0], CONSUMERS // 32
    together = next((each for each in (8, 4, 2) if m * each <= blocks * warps), 1)
    return together, min(blocks, ceil_div(m, warps // together))


def place(
    memory: int, stream: int, launch: Launch, sizes: tuple[int, int, int], weight: TensorMap, fixed: tuple[int, ...],
    scales: int, common: int,
) -> Place:  # fmt: skip
    """The place of calls in a stream's memory, of hopper_fp8_once.words(k, m) words. Launches on a stream follow each
    other, so all may use it.

    sizes    m, n, k
    fixed    the addresses of the input's scale, if it is static, and of its upper bound, if it has one, else 0
    scales   that of the weight's scales
    common   1 where several rows have one scale, that of their largest number
    """
    m, n, k = sizes
    codes = memory + COUNTER_BYTES
    of_codes = tensor_map(codes, "u8", m, k, k, launch.codes)
    of_input = codes + ceil_div(m * k, 256) * 256
    begin, end = (None, *fixed, codes, of_input, memory), (None, None)
    numbers = (*sizes, common, None) if launch.factors is None else (1, *sizes, common, *shares_of(m, launch), None)
    arguments: tuple[int | None, ...] = (*begin, scales, *end, *numbers)
    maps: tuple[TensorMap | None, ...] = (of_codes, weight)
    outputs = None
    if launch.divided is not None:  # no tile is divided
        arguments, maps = (*begin, *end, *numbers, 0, 0, 0), (*maps, apart_op.factors_of(scales, n, launch), None)
        outputs = lru_cache(maxsize=64)(partial(launch.output_map, m=m, n=n))
    return Place(Repeated(launch.function, launch.grid, launch.block, stream, arguments, maps), outputs)
