"""FP8 weights with 16-bit inputs on Hopper: packing, which instance of csrc/cuda serves how many rows, its launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER, Function
from kerneltable.ops.hopper import DTYPE_CODES, SHARED_BYTES, ceil_div, instance, map_of, output_of

DEPTH = 128
TILE_BYTES = 64 * DEPTH
EXPONENT_BYTES = 64 * DEPTH // 32
TYPES = (BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32)
BY_ROW, BY_BLOCK, BY_32 = 0, 1, 2
"""KT_SCALES: one scale a row (or for all), one a block of 128 x 128, one e8m0 for 32 columns of a row."""

EXACT_EXPONENTS = {"bf16": (16, 134), "f16": (112, 134)}
"""e8m0 codes between which every e4m3 value times its scale is a normal or exact number of the input's type, and the
scale times the constant that widens the code still a power of two that the type has."""

Make = Callable[..., Function]
"""What makes an instance: ops.hopper.instance, or in a test what only notes it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An instance of hopper_w8a16.cu: its compile-time numbers."""

    groups: int
    columns: int
    stages: int
    split: int
    inputs: int = 1


def pack(codes: torch.Tensor, exponents: torch.Tensor | None) -> torch.Tensor:
    """The weight in the order in which a thread of the kernel needs its codes.

    codes      [n, k] uint8 holding e4m3, no NaN; k a multiple of 32 with exponents
    exponents  [n, k / 32] uint8 holding e8m0, or None
    returns    [ceil(n / 64), ceil(k / 128), 8192 (+ 256 with exponents)] uint8, contiguous; padded with zeros.
               A tile is [quarter of k, warp, lane, 16 bytes]: two instructions of 8 bytes each, in which the codes of
               rows r + 8 and r stand alternately, since two shifts and two masks then widen four codes
    source     PTX ISA 9.0, register fragments of wgmma.mma_async.m64nNk16
    """
    n, k = codes.shape
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
    padded = torch.zeros(tiles * 64, blocks * DEPTH, dtype=torch.uint8, device=codes.device)
    padded[:n, :k] = codes
    # tile, warp, row or row + 8, row, block, quarter, instruction, columns or columns + 8, pair of columns, column
    parts = padded.view(tiles, 4, 2, 8, blocks, 4, 2, 2, 4, 2)
    ordered = parts.permute(0, 4, 5, 1, 3, 8, 6, 7, 9, 2).flip(-1).reshape(tiles, blocks, TILE_BYTES)
    if exponents is None:
        return ordered.contiguous()
    ones = torch.full((tiles * 64, blocks * 4), 127, dtype=torch.uint8, device=codes.device)
    ones[:n, : k // 32] = exponents
    scales = ones.view(tiles, 4, 2, 8, blocks, 4).permute(0, 4, 1, 3, 5, 2).reshape(tiles, blocks, EXPONENT_BYTES)
    return torch.cat([ordered, scales], dim=-1).contiguous()


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant:
    """The instance for a product: measured on an H200 (132 multiprocessors); splits of k fill the chip with blocks."""
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
    if m <= 64:
        columns = next(c for c in (8, 16, 32, 64) if c >= m)
        split = max(1, min(8, int(2.5 * multiprocessors / tiles), blocks // 4))
        stages = 3 if columns == 64 else 4 if columns == 32 or tiles > 1.5 * multiprocessors else 6
        return Variant(1, columns, stages, split)
    pairs = ceil_div(n, 128)
    if m > 256 and scales != BY_BLOCK:
        return Variant(2, 256, 2, 1)
    if m <= 128 and 2 * tiles <= multiprocessors:
        return Variant(1, 128, 4, max(1, min(2, blocks // 4)))
    split = max(1, min(3, int(1.02 * multiprocessors / (pairs * ceil_div(m, 128))), blocks // 4))
    return Variant(2, 128, 4, split)


def load(choice: Variant, scales: int, dtype: str, output: str, device: int, make: Make = instance) -> Function:
    """The instance for input dtype ("bf16", "f16") and output dtype, compiled and loaded."""
    tile = TILE_BYTES + (EXPONENT_BYTES if scales == BY_32 else 0)
    stage = choice.groups * tile + choice.columns * DEPTH * 2
    shared = 1024 + max(choice.stages * stage, choice.columns * (64 * choice.groups + 4) * 4)
    numbers = {
        "GROUPS": choice.groups, "COLUMNS": choice.columns, "STAGES": choice.stages, "SPLIT": choice.split,
        "INPUTS": choice.inputs, "SCALES": scales, "IN": DTYPE_CODES[dtype], "OUT": DTYPE_CODES[output],
    }  # fmt: skip
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return make("cuda/hopper_w8a16.cu", "hopper_w8a16", TYPES, min(shared, SHARED_BYTES), device, defines)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards."""

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    box: tuple[int, int]


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, scales: int, dtypes: tuple[str, str], multiprocessors: int, device: int,
    choice: Variant | None = None,
) -> Launch:  # fmt: skip
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, scales, multiprocessors)
    rows = 64 * choice.groups
    across = ceil_div(ceil_div(n, rows), choice.inputs) * choice.inputs * choice.split
    threads = 128 * choice.groups + (128 if choice.groups == 2 and choice.columns >= 128 else 32)
    return Launch(
        load(choice, scales, *dtypes, device),
        (across, ceil_div(m, choice.columns), 1),
        (threads, 1, 1),
        (choice.columns // choice.inputs, 64),
    )


def product(
    x: torch.Tensor, packed: torch.Tensor, weight_scale: torch.Tensor | None, bias: torch.Tensor | None, n: int,
    scales: int, dtypes: tuple[str, str], multiprocessors: int, choice: Variant | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times the packed weight transposed, scaled, plus bias, rounded once.

    x             [m, k] bf16 or f16, columns contiguous, rows a multiple of 16 bytes apart, m at least 1
    packed        as `pack` gives it
    weight_scale  f32: [n] (BY_ROW), [ceil(n / 128), ceil(k / 128)] (BY_BLOCK), None (BY_32)
    bias          [n] f32, contiguous, or None
    dtypes        of input and output, e.g. ("bf16", "bf16")
    choice        None lets `variant` choose
    returns       [m, n] of the output dtype, contiguous
    """
    m, k = x.shape
    launch = prepare(m, n, k, scales, dtypes, multiprocessors, x.device.index or 0, choice)
    out = output_of(m, n, dtypes[1], x.device)
    pointers = (0 if weight_scale is None else weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr())
    launch.function(
        launch.grid,
        launch.block,
        (map_of(x, dtypes[0], launch.box), packed.data_ptr(), *pointers, out.data_ptr(), m, n, ceil_div(k, DEPTH)),
    )
    return out
