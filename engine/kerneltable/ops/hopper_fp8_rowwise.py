"""FP8 products of few rows on Hopper with a scale for each row of the input and of the weight: hopper_fp8_rowwise.cu.

Tiles and parts of k are those that hopper_fp8_block has for as many rows: both stream the weight once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER, Function
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, map_of, output_of
from kerneltable.ops.hopper_fp8_choice import DEPTH, FEW_ROWS, Stream, variant

TYPES = (BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32, INT32)

MOST_TILES = 2**15
"""Of the input's rows along one dimension of the grid, which ends at 2^16 - 1."""


def choice_of(m: int, n: int, k: int, multiprocessors: int) -> Stream:
    """The instance for a product of [m, k] with [n, k]; the weight is streamed again for every FEW_ROWS rows."""
    found = variant(min(m, FEW_ROWS), n, k, multiprocessors)
    assert isinstance(found, Stream)
    return found


def instances(products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and an output dtype."""
    yield from dict.fromkeys(instance_of(choice_of(*product), output) for product in products)


def instance_of(choice: Stream, output: str) -> Instance:
    """The instance for an output dtype ("bf16", "f16", "f32")."""
    numbers = {"COLUMNS": choice.columns, "STAGES": choice.stages, "SPLIT": choice.split, "OUT": DTYPE_CODES[output]}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    name = "hopper_fp8_rowwise"
    return Instance(f"cuda/{name}.cu", name, TYPES, choice.shared_bytes, defines, early=True)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows.

    weight, codes   rows and columns of one copy of each
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    weight: tuple[int, int]
    codes: tuple[int, int]


@lru_cache(maxsize=65536)
def prepare(m: int, n: int, k: int, output: str, chip: CudaChip, device: int) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]."""
    choice = choice_of(m, n, k, chip.multiprocessors)
    function = load(instance_of(choice, output), chip, device)
    tiles = ceil_div(m, choice.columns)
    grid = (ceil_div(n, 64) * choice.split, min(tiles, MOST_TILES), ceil_div(tiles, MOST_TILES))
    return Launch(function, grid, (160, 1, 1), (64, DEPTH), (choice.columns, DEPTH))


def product(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, output: str, chip: CudaChip,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [m, 1] f32, contiguous, or one number for all rows
    weight        [n, k] e4m3, contiguous, at a multiple of 16 bytes; n and k multiples of 16
    weight_scale  [n] f32, contiguous
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, output, chip, codes.device.index or 0)
    out = output_of(m, n, output, codes.device)
    maps = (map_of(codes, "u8", launch.codes).address, map_of(weight, "u8", launch.weight).address)
    addresses = (scales.data_ptr(), weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    step = int(scales.numel() > 1)
    launch.function(launch.grid, launch.block, (*addresses, step, m, n, ceil_div(k, DEPTH)), maps)
    return out
