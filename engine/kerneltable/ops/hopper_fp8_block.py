"""Block-scaled FP8 products on Hopper: which instance of csrc/cuda serves how many rows, and its launch.

Few rows stream the weight once (hopper_fp8_block_stream.cu), many keep the tensor cores busy (hopper_fp8_block.cu).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
    choice = choice or variant(m, n, k, multiprocessors)
    launch = load(choice, output, codes.device.index or 0)
    out = output_of(m, n, output, codes.device)
    tail = (weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), m, n, ceil_div(k, DEPTH))
    if isinstance(choice, Stream):
        maps, grid, threads = _stream(choice, codes, scales, weight)
    else:
        maps, grid, threads = _tiled(choice, codes, scales, weight, multiprocessors)
    launch(grid, (threads, 1, 1), (*maps, *tail))
    return out


Geometry = tuple[tuple[Any, Any, Any], tuple[int, int, int], int]


def _stream(choice: Stream, codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor) -> Geometry:
    rows, columns = 64 * choice.groups, choice.columns
    maps = (
        map_of(weight, "u8", (rows, DEPTH)), map_of(codes, "u8", (columns, DEPTH)), map_of(scales, "f32", (1, columns))
    )  # fmt: skip
    grid = (ceil_div(weight.shape[0], rows) * choice.split, ceil_div(codes.shape[0], columns), 1)
    return maps, grid, 128 * choice.groups + 32


def _tiled(
    choice: Tiled, codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, multiprocessors: int
) -> Geometry:
    rows, columns = (64, choice.columns) if choice.common else (128, choice.columns // 2)
    maps = (
        map_of(codes, "u8", (rows, DEPTH)), map_of(weight, "u8", (columns, DEPTH)), map_of(scales, "f32", (1, 128))
    )  # fmt: skip
    pair = (128, 2 * choice.columns) if choice.common else (256, choice.columns)
    pairs = ceil_div(codes.shape[0], pair[0]) * ceil_div(weight.shape[0], pair[1])
    return maps, (2 * min(multiprocessors // 2, pairs), 1, 1), 384
