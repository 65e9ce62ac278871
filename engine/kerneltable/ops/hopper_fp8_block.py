"""Block-scaled FP8 products on Hopper: which instance of csrc/cuda serves how many rows, and its launch.

Few rows stream the weight once (hopper_fp8_block_stream.cu), many keep the tensor cores busy (hopper_fp8_block.cu).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER, Function
from kerneltable.ops.hopper import DTYPE_CODES, SHARED_BYTES, ceil_div, instance, map_of, output_of

DEPTH = 128
FEW_ROWS = 128
"""Up to here an input tile is one tile of columns of the streaming kernel."""

WIDE_N = 16384
"""From here on, more than 64 rows fill the chip with whole tiles of 128 x 192 without splitting k."""

TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER, INT32, INT32, INT32)

Make = Callable[..., Function]
"""What makes an instance: ops.hopper.instance, or in a test what only notes it."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An instance of hopper_fp8_block_stream.cu: its compile-time numbers."""

    groups: int
    columns: int
    stages: int
    split: int


@dataclass(frozen=True, slots=True)
class Tiled:
    """An instance of hopper_fp8_block.cu; common names what a pair of blocks shares, 0 the weight, 1 the input tile."""

    columns: int
    common: int
    stages: int
    group: int


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int) -> Stream | Tiled:
    """The instance for a product: measured on an H200 (132 multiprocessors) over the shapes of DeepSeek-V3, Qwen3-32B
    and Llama-3-70B; splits of k fill the chip with blocks, three to a multiprocessor up to 16 rows, two up to 64."""
    if m > FEW_ROWS or (m > 64 and n >= WIDE_N):
        wide = n >= WIDE_N and m <= 2 * FEW_ROWS
        return Tiled(192, 1, 5, 8) if wide else Tiled(128, 1, 6, 8)
    columns = next(c for c in (8, 16, 32, 64, 128) if c >= m)
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
    each = 2.67 * multiprocessors / tiles + 0.3 if columns <= 16 else 2.0 * multiprocessors / tiles
    if columns == 64 and each < 2 and 2 * tiles <= 2.6 * multiprocessors:
        each = 2  # three blocks of this size share a multiprocessor, as long as they come in pairs
    split = max(1, min(8, int(each), blocks // 8))
    if columns == 128 and split > 2:
        split = max(2, min(split, int(1.5 * multiprocessors / tiles)))  # larger clusters of large blocks pack badly
    stages = 8 if columns <= 16 and tiles * split <= multiprocessors else 4
    return Stream(1, columns, stages, split)


def load(choice: Stream | Tiled, output: str, device: int, make: Make = instance) -> Function:
    """The instance for an output dtype ("bf16", "f16", "f32"), compiled and loaded."""
    if isinstance(choice, Stream):
        rows, columns = 64 * choice.groups, choice.columns
        stage = (rows + columns) * DEPTH + ceil_div(columns * 4, 128) * 128
        shared = 1024 + max(choice.stages * stage, columns * (rows + 4) * 4)
        file, name = "cuda/hopper_fp8_block_stream.cu", "hopper_fp8_block_stream"
        numbers = {"GROUPS": choice.groups, "SPLIT": choice.split, "INPUTS": 1, "WEIGHTS": 1}
    else:
        shared = 1024 + choice.stages * ((128 + choice.columns) * DEPTH + 512) + 8 * 16 * 72 * 2
        file, name = "cuda/hopper_fp8_block.cu", "hopper_fp8_block"
        numbers = {"COMMON": choice.common, "GROUP": choice.group}
    numbers |= {"COLUMNS": choice.columns, "STAGES": choice.stages, "OUT": DTYPE_CODES[output]}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return make(file, name, TYPES, min(shared, SHARED_BYTES), device, defines)


Box = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    weight, codes, scales   rows and columns of one copy of each
    weight_first            the order in which the kernel takes the maps of weight and codes
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    weight: Box
    codes: Box
    scales: Box
    weight_first: bool


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, output: str, multiprocessors: int, device: int, choice: Stream | Tiled | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, multiprocessors)
    function = load(choice, output, device)
    if isinstance(choice, Stream):
        rows, columns = 64 * choice.groups, choice.columns
        grid = (ceil_div(n, rows) * choice.split, ceil_div(m, columns), 1)
        block = (128 * choice.groups + 32, 1, 1)
        return Launch(function, grid, block, (rows, DEPTH), (columns, DEPTH), (1, columns), True)
    codes, weight = (64, choice.columns) if choice.common else (128, choice.columns // 2)
    pair = (128, 2 * choice.columns) if choice.common else (256, choice.columns)
    pairs = ceil_div(m, pair[0]) * ceil_div(n, pair[1])
    grid = (2 * min(multiprocessors // 2, pairs), 1, 1)
    return Launch(function, grid, (384, 1, 1), (weight, DEPTH), (codes, DEPTH), (1, 128), False)


def product(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, output: str, multiprocessors: int, choice: Stream | Tiled | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [ceil(k / 128), m padded to a multiple of 4] f32, as quantize_block_by_column gives them
    weight        [n, k] e4m3, contiguous; n and k multiples of 16
    weight_scale  [ceil(n / 128), ceil(k / 128)] f32, contiguous
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, output, multiprocessors, codes.device.index or 0, choice)
    out = output_of(m, n, output, codes.device)
    maps = map_of(weight, "u8", launch.weight), map_of(codes, "u8", launch.codes)
    launch.function(
        launch.grid,
        launch.block,
        (
            *(maps if launch.weight_first else maps[::-1]),
            map_of(scales, "f32", launch.scales),
            weight_scale.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            m,
            n,
            ceil_div(k, DEPTH),
        ),
    )
    return out
