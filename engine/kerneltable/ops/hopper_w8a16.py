"""FP8 weights with 16-bit inputs on Hopper: launches of the instances that hopper_w8a16_variants chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import load
from kerneltable.ops.cuda_launch import Function, TensorMap
from kerneltable.ops.fragment_tiles import DEPTH, EXACT_EXPONENTS
from kerneltable.ops.hopper import FLAGS, PARTS_BYTES, ceil_div, map_of, output_of, tensor_map, tiles_to_divide
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.ops.hopper_w8a16_variants import WIDE_COLUMNS, Wide, instance_of, variant
from kerneltable.ops.stream_memory import memory_of

BESIDE = 1024 + 256
"""Bytes of shared memory that a block takes beside what it asks for: the system's, and its barriers."""

UNITS = {
    "bf16": (2.0 ** (EXACT_EXPONENTS["bf16"][0] - 127), 2.0 ** (EXACT_EXPONENTS["bf16"][1] - 126), math.inf),
    "f16": (2.0**-100, 2.0**100, 2.0**40),
}
"""The least scale that sums can be in units of, the least one above that is too large, and how far apart those of a
weight may be; hopper_widened.cuh says why."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    divided      tiles that are divided along k; None: no such instance
    part_bytes   what blocks leave for each other, beside flags
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    box: tuple[int, int]
    divided: int | None = None
    part_bytes: int = 0


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, scales: int, dtypes: tuple[str, str], chip: CudaChip, device: int,
    choice: Variant | Wide | None = None,
) -> Launch:  # fmt: skip
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, scales, chip.multiprocessors)
    code = instance_of(choice, scales, *dtypes)
    if isinstance(choice, Wide):
        tiles = ceil_div(n, 128 * choice.inputs) * ceil_div(m, WIDE_COLUMNS)
        workers = chip.multiprocessors // choice.inputs
        divided = tiles_to_divide(tiles, workers) if choice.divide else 0
        blocks = choice.inputs * (workers if divided else min(workers, tiles))
        function = load(replace(code, early=choice.early), chip, device)
        part_bytes = blocks * WIDE_COLUMNS * PARTS_BYTES if divided else 0
        return Launch(function, (blocks, 1, 1), (384, 1, 1), (WIDE_COLUMNS // choice.inputs, 64), divided, part_bytes)
    shared = chip.shared_bytes // choice.together - BESIDE if choice.together else 0
    code = replace(code, shared_bytes=max(code.shared_bytes, shared), early=choice.early)
    threads = 128 * choice.groups + (128 if choice.groups == 2 and choice.columns >= 128 else 32)
    return Launch(
        load(code, chip, device),
        (ceil_div(n, 64 * choice.groups) * choice.split, ceil_div(m, choice.columns), 1),
        (threads, 1, 1),
        (choice.columns, 64),
    )


def rescales(scale: torch.Tensor, dtype: str) -> bool:
    """Whether one sum can change its unit from block to block and stay finite wherever the result is.

    scale     f32, the scales of blocks, at least one
    dtype     of the input, "bf16" or "f16"
    returns   True if every scale is 0 or one that UNITS allows; waits for the device
    """
    low, high, span = UNITS[dtype]
    least = torch.where(scale == 0, math.inf, scale).amin()
    smallest, largest = torch.stack([least, scale.amax()]).tolist()
    if math.isnan(smallest) or math.isnan(largest):
        return False
    return bool(low <= smallest and largest < high and largest <= smallest * span)


def product(
    x: torch.Tensor, packed: torch.Tensor, weight_scale: torch.Tensor | None, bias: torch.Tensor | None, n: int,
    scales: int, dtypes: tuple[str, str], chip: CudaChip, choice: Variant | Wide | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times the packed weight transposed, scaled, plus bias, rounded once.

    x             [m, k] bf16 or f16, columns contiguous, rows a multiple of 16 bytes apart, m at least 1
    packed        as `pack` gives it
    weight_scale  f32: [n] (BY_ROW), [ceil(n / 128), ceil(k / 128)] (BY_BLOCK, RESCALED), None (BY_32)
    bias          [n] f32, contiguous, or None
    scales        what a scale covers; RESCALED only if `rescales` says so
    dtypes        of input and output, e.g. ("bf16", "bf16")
    choice        None lets `variant` choose
    returns       [m, n] of the output dtype, contiguous
    """
    m, k = x.shape
    launch = prepare(m, n, k, scales, dtypes, chip, x.device.index or 0, choice)
    out = output_of(m, n, dtypes[1], x.device)
    weights = (packed.data_ptr(), 0 if weight_scale is None else weight_scale.data_ptr())
    added = 0 if bias is None else bias.data_ptr()
    addresses, sizes = (*weights, added, out.data_ptr()), (m, n, ceil_div(k, DEPTH))
    start(launch, map_of(x, dtypes[0], launch.box), addresses, sizes, out)
    return out


def start(
    launch: Launch, x: TensorMap, addresses: tuple[int, int, int, int], sizes: tuple[int, int, int],
    out: torch.Tensor,
) -> None:  # fmt: skip
    """Launch.

    addresses   of the packed weight, its scales (0: none), the bias (0: none) and the output
    sizes       m, n, and blocks of k
    out         the output: what a launch needs beside is allocated where it is
    """
    if launch.divided is None:
        launch.function(launch.grid, launch.block, (*addresses, *sizes), (x.address,))
    elif not launch.divided:
        launch.function(launch.grid, launch.block, (*addresses, 0, 0, *sizes, 0), (x.address,))
    else:
        flags = memory_of(out.device, launch.grid[0] * FLAGS).now()
        parts = out.new_empty(launch.part_bytes, dtype=torch.uint8)
        pointers = (*addresses, parts.data_ptr(), flags.data_ptr())
        launch.function(launch.grid, launch.block, (*pointers, *sizes, launch.divided), (x.address,))


@lru_cache(maxsize=4096)
def input_maps(m: int, k: int, dtype: str, box: tuple[int, int]) -> Callable[[int], TensorMap]:
    """The maps of contiguous inputs [m, k] by their address: the allocator gives the same ones again and again."""

    def make(address: int) -> TensorMap:
        return tensor_map(address, dtype, m, k, k * 2, box)

    return lru_cache(maxsize=256)(make)
