"""Block-scaled FP8 products of a few rows on Hopper in one launch: the input is quantized in the product's own blocks.

Tile and parts of k are those that hopper_fp8_block has for the same product, so the sums are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, Function, TensorMap
from kerneltable.ops.cuda_vectors import DTYPES, readable, width_of
from kerneltable.ops.hopper import ceil_div, map_of, output_of
from kerneltable.ops.hopper_fp8_choice import DEPTH, Stream, variant
from kerneltable.ops.hopper_fp8_launch import instance

TYPES = (BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32, INT64)
FUSED_ROWS = 4
"""Most rows of the input: every block quantizes them all, and beyond these that takes longer than the weight."""

QUANTIZERS = 3
"""Warps of a block that quantize: 256 threads in all, of which four blocks share the registers of a multiprocessor."""


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output."""
    choices = (variant.__wrapped__(*product) for product in products if product.m <= FUSED_ROWS)
    yield from dict.fromkeys(instance_of(one, input, output) for one in choices if isinstance(one, Stream))


def instance_of(choice: Stream, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32")."""
    return instance("hopper_fp8_block_fused", TYPES, choice, output, input, QUANTIZERS=QUANTIZERS)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    box   rows and columns of one copy of the weight
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    box: tuple[int, int]


def serves(m: int, n: int, k: int, chip: CudaChip) -> bool:
    """Whether a product of [m, k] with [n, k] is one launch."""
    return m <= FUSED_ROWS and isinstance(variant(m, n, k, chip.multiprocessors), Stream)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int, choice: Stream | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose.

    errors   ValueError for more rows than the instance takes
    """
    found = choice or variant(m, n, k, chip.multiprocessors)
    most = FUSED_ROWS if choice is None else choice.columns
    if not isinstance(found, Stream) or m > most:
        raise ValueError(f"hopper_fp8_fused: m must be at most {most}; found {m}")
    function = load(instance_of(found, input, output), chip, device)
    grid = (ceil_div(n, 64) * found.split, 1, 1)
    return Launch(function, grid, (160 + 32 * QUANTIZERS, 1, 1), (64, DEPTH))


def product(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None, output: str,
    chip: CudaChip, *, choice: Stream | None = None,
) -> torch.Tensor:  # fmt: skip
    """x, quantized in groups of 128 columns, times weight transposed, scaled, plus bias, rounded once.

    x             [m, k] bf16, f16 or f32, any strides; m from 1 to FUSED_ROWS, or to the columns of the choice
    weight        [n, k] e4m3, contiguous; n and k multiples of 16
    weight_scale  [ceil(n / 128), ceil(k / 128)] f32, contiguous
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of dtype output, contiguous
    errors        ValueError for more rows
    """
    (m, k), n, input = x.shape, weight.shape[0], DTYPES[x.dtype]
    x = readable(x, width_of(input, DEPTH))
    launch = prepare(m, n, k, input, output, chip, x.device.index or 0, choice)
    out = output_of(m, n, output, x.device)
    scales = (weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr())
    sizes = (m, n, k, x.stride(0))
    start(launch, map_of(weight, "u8", launch.box), (x.data_ptr(), *scales, out.data_ptr()), sizes)
    return out


def start(
    launch: Launch, weight: TensorMap, addresses: tuple[int, int, int, int], sizes: tuple[int, int, int, int]
) -> None:
    """Launch.

    addresses   of x, the weight's scales, the bias (0: none) and the output
    sizes       m, n, k, and elements between rows of x
    """
    launch.function(launch.grid, launch.block, (*addresses, *sizes), (weight.address,))
