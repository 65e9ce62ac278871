"""FP8 products on Hopper with a scale for each row of the input and of the weight: hopper_fp8_rowwise.cu for few rows,
which streams the weight once, hopper_fp8_rowwise_tiled.cu and hopper_fp8_rowwise_parts.cu for many.

Instances are those that hopper_fp8_block has for as many rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, TensorMap
from kerneltable.ops.hopper import ceil_div, map_of, output_of, tensor_map
from kerneltable.ops.hopper_fp8_block import MADE
from kerneltable.ops.hopper_fp8_choice import DEPTH, Choice, Parted, Stream, variant
from kerneltable.ops.hopper_fp8_launch import Launch, instance, launch_of
from kerneltable.ops.stream_memory import memory_of

TYPES = (BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32, INT32)
PARTED_TYPES = (BY_VALUE, BY_VALUE, *[POINTER] * 9, *[INT32] * 7, INT64)
TILED_TYPES = (*[BY_VALUE] * 4, *[POINTER] * 8, *[INT32] * 7, INT64, INT32, POINTER, POINTER)


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output."""
    choices = (variant.__wrapped__(*product) for product in products)
    yield from dict.fromkeys(instance_of(choice, input, output) for choice in choices)


def instance_of(choice: Choice, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32")."""
    if isinstance(choice, Stream):
        return instance("hopper_fp8_rowwise", TYPES, choice, output)
    if isinstance(choice, Parted):
        return instance("hopper_fp8_rowwise_parts", PARTED_TYPES, choice, output, input)
    return instance("hopper_fp8_rowwise_tiled", TILED_TYPES, choice, output, input)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int, choice: Choice | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, chip.multiprocessors)
    function = load(instance_of(choice, input, output), chip, device)
    return launch_of(function, choice, m, n, output, chip.multiprocessors)


def product(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, dtypes: tuple[str, str], chip: CudaChip, *, choice: Choice | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [m, 1] f32, contiguous, or one number for all rows
    weight        [n, k] e4m3, contiguous, at a multiple of 16 bytes; n and k multiples of 16
    weight_scale  [n] f32, contiguous, at a multiple of 16 bytes
    bias          [n] f32, contiguous, or None
    dtypes        of the input that was quantized, and of the output: "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of the output's dtype, contiguous
    """
    (m, k), n, device = codes.shape, weight.shape[0], codes.device
    launch = prepare(m, n, k, *dtypes, chip, device.index or 0, choice)
    out = output_of(m, n, dtypes[1], device)
    maps = (map_of(codes, "u8", launch.codes).address, map_of(weight, "u8", launch.weight).address)
    addresses = (weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    step = int(scales.numel() > 1)
    if launch.factors is None:
        arguments = (scales.data_ptr(), *addresses, step, m, n, ceil_div(k, DEPTH))
        launch.function(launch.grid, launch.block, arguments, maps)
        return out
    sizes = (step, m, n, k, 0, 0, 0, 0)
    if launch.divided is None:
        launch.function(launch.grid, launch.block, (*MADE, scales.data_ptr(), 0, *addresses, *sizes), maps)
        return out
    parts = torch.empty(launch.part_bytes, dtype=torch.uint8, device=device)
    flags = memory_of(device, launch.flags).now() if launch.divided else parts
    rest = (launch.divided, parts.data_ptr(), flags.data_ptr())
    factors = factors_of(weight_scale.data_ptr(), n, launch)
    every = (*maps, factors.address, launch.output_map(out.data_ptr(), m, n).address)
    launch.function(launch.grid, launch.block, (*MADE, scales.data_ptr(), 0, *addresses[1:], *sizes, *rest), every)
    return out


def factors_of(address: int, n: int, launch: Launch) -> TensorMap:
    """The map by which the scales [n] f32 of a tile's columns are fetched."""
    return tensor_map(address, "f32", 1, n, 4 * n, (1, launch.columns))
