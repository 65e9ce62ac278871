"""What launches of the Hopper FP8 products share: the compile-time numbers of an instance, its grid, its copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.ops.cuda_code import Instance
from kerneltable.ops.cuda_launch import Function, TensorMap
from kerneltable.ops.cuda_repeated import Repeated
from kerneltable.ops.cuda_vectors import width_of
from kerneltable.ops.hopper import DTYPE_CODES, FLAGS, PARTS_BYTES, ceil_div, tensor_map, tiles_to_divide
from kerneltable.ops.hopper_fp8_choice import DEPTH, INPUT, NOTHING, WEIGHT, Choice, Parted, Stream, Tiled

Box = tuple[int, int]

CONSUMERS = 256
"""Threads of a block of the tiled kernels that multiply, and quantize."""


def instance(
    name: str, types: tuple[Any, ...], choice: Choice, output: str, input: str | None = None, **more: int
) -> Instance:
    """The instance of csrc/cuda/<name>.cu for a choice and dtypes ("bf16", "f16", "f32"); input None: it has none."""
    numbers = {"COLUMNS": choice.columns, "STAGES": choice.stages, "OUT": DTYPE_CODES[output], **more}
    if input is not None:
        numbers |= {"IN": DTYPE_CODES[input], "WIDTH": width_of(input, DEPTH)}
    if isinstance(choice, Tiled):
        apart = int(choice.apart and output != "f32")
        numbers |= {"COMMON": choice.common, "GROUP": choice.group, "CHUNKS": choice.chunks, "APART": apart}
    else:
        numbers |= {"SPLIT": choice.split}
    shared = choice.shared_bytes(output) if isinstance(choice, Tiled) else choice.shared_bytes
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance(f"cuda/{name}.cu", name, types, shared, defines, early=True)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    columns         of a tile
    weight, codes   rows and columns of one copy of each
    scales          of one copy of the input's scales for a block of k
    factors         of one copy of the weight's scales for a block of k; None: threads read them
    divided         tiles that are divided along k by workers that stay; None: no such instance
    part_bytes      what blocks leave for each other: memory
    flags           and 32-bit words that are 0 before and after
    output          its dtype, for workers that stay: the copy engine stores their tiles
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    columns: int
    weight: Box
    codes: Box
    scales: Box
    factors: Box | None = None
    divided: int | None = None
    part_bytes: int = 0
    flags: int = 0
    output: str = ""

    def output_map(self, address: int, m: int, n: int) -> TensorMap:
        """The map of an output [m, n], for workers that stay."""
        size = 4 if self.output == "f32" else 2
        return tensor_map(address, self.output, m, n, n * size, (16, 128 // size))


@dataclass(frozen=True, slots=True)
class Place:
    """Eager calls with one number of rows on one stream: the launch, written for the memory that its halves share.

    launch   takes the addresses of x, the bias (0: none) and the output, and the elements between rows of x
    outputs  for workers that stay: the map of the output at an address
    """

    launch: Repeated
    outputs: Callable[[int], TensorMap] | None

    def __call__(self, x: torch.Tensor, step: int, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """Launch; step: elements between rows of x."""
        at = out.data_ptr()
        arguments = (x.data_ptr(), 0 if bias is None else bias.data_ptr(), at, step)
        if self.outputs is None:
            self.launch(arguments)
        else:
            self.launch(arguments, self.outputs(at).address)


def launch_of(function: Function, choice: Choice, m: int, n: int, output: str, multiprocessors: int) -> Launch:
    """The grid of an instance for a product with m rows and n columns."""
    columns = choice.columns
    if isinstance(choice, Stream):
        grid = (ceil_div(n, 64) * choice.split, ceil_div(m, columns), 1)
        return Launch(function, grid, (160, 1, 1), columns, (64, DEPTH), (columns, DEPTH), (1, columns))
    threads, factors = (128 + CONSUMERS, 1, 1), (1 if 128 % columns == 0 else 2, 4)
    if isinstance(choice, Parted):
        grid = (choice.split * ceil_div(m, 128) * ceil_div(n, columns), 1, 1)
        return Launch(function, grid, threads, columns, (columns, DEPTH), (128, DEPTH), (1, 128), factors)
    members = 1 if choice.common == NOTHING else 2
    rows, across = 256 if choice.common == WEIGHT else 128, 2 * columns if choice.common == INPUT else columns
    tiles, most = ceil_div(m, rows) * ceil_div(n, across), multiprocessors // members
    codes, weight = 64 if choice.common == INPUT else 128, columns // 2 if choice.common == WEIGHT else columns
    boxes = ((weight, DEPTH), (codes, DEPTH), (1, 128), factors)
    divided = tiles_to_divide(tiles, most) if choice.divide else 0
    blocks = members * (most if divided else min(most, tiles))
    parts, flags = (blocks * columns * PARTS_BYTES, blocks * FLAGS) if divided else (0, 0)
    return Launch(function, (blocks, 1, 1), threads, columns, *boxes, divided, parts, flags, output)
