"""Block-scaled FP8 products on Hopper: which instance of csrc/cuda serves how many rows, and its launch.

Few rows stream the weight once (hopper_fp8_block_stream.cu), many keep the tensor cores busy (hopper_fp8_block.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER, Function, TensorMap
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, map_of, output_of, tensor_map
from kerneltable.ops.hopper_fp8_choice import DEPTH, FIXED, Choice, Parted, Stream, Tiled, tile_bytes, variant

TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER)
STREAM_TYPES = (*TYPES, INT32, INT32, INT32)
TILED_TYPES = (BY_VALUE, *TYPES, POINTER, POINTER, INT32, INT32, INT32, INT32)
WARPGROUPS = 2
"""That multiply in a block of hopper_fp8_block.cu; each has a flag."""


def instances(products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and an output dtype."""
    choices = (variant.__wrapped__(*product) for product in products)
    yield from dict.fromkeys(instance_of(choice, output) for choice in choices)


def fixed_instances(_products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks for the kernel that has one instance."""
    yield instance_of(FIXED, output)


def instance_of(choice: Choice, output: str) -> Instance:
    """The instance for an output dtype ("bf16", "f16", "f32")."""
    numbers = {"COLUMNS": choice.columns, "STAGES": choice.stages, "OUT": DTYPE_CODES[output]}
    if isinstance(choice, Stream):
        name, shared = "hopper_fp8_block_stream", choice.shared_bytes
        numbers |= {"SPLIT": choice.split}
    elif isinstance(choice, Parted):
        name, shared = "hopper_fp8_block_parts", choice.stages * tile_bytes(choice.columns)
        numbers |= {"COMMON": choice.common, "SPLIT": choice.split}
    else:
        name, shared = "hopper_fp8_block", choice.shared_bytes(output)
        numbers |= {"COMMON": choice.common, "GROUP": choice.group, "CHUNKS": choice.chunks}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    types = TILED_TYPES if isinstance(choice, Tiled) else STREAM_TYPES
    return Instance(f"cuda/{name}.cu", name, types, shared, defines, early=True)


Box = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    weight, codes, scales   rows and columns of one copy of each
    divided                 tiles that are divided along k by workers that stay; None: no such instance
    part_bytes, flags       what blocks leave for each other: memory, and 32-bit words that are 0 before and after
    output                  its dtype, for workers that stay: the copy engine stores their tiles
    """

    function: Function
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    weight: Box
    codes: Box
    scales: Box
    divided: int | None = None
    part_bytes: int = 0
    flags: int = 0
    output: str = ""


@lru_cache(maxsize=65536)
def prepare(m: int, n: int, k: int, output: str, chip: CudaChip, device: int, choice: Choice | None = None) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, chip.multiprocessors)
    function = load(instance_of(choice, output), chip, device)
    columns = choice.columns
    if isinstance(choice, Stream):
        grid = (ceil_div(n, 64) * choice.split, ceil_div(m, columns), 1)
        return Launch(function, grid, (160, 1, 1), (64, DEPTH), (columns, DEPTH), (1, columns))
    codes, weight = (64, columns) if choice.common else (128, columns // 2)
    pair = (128, 2 * columns) if choice.common else (256, columns)
    tiles, most = ceil_div(m, pair[0]) * ceil_div(n, pair[1]), chip.multiprocessors // 2
    boxes = ((weight, DEPTH), (codes, DEPTH), (1, 128))
    if isinstance(choice, Parted):
        return Launch(function, (2 * choice.split * tiles, 1, 1), (384, 1, 1), *boxes)
    divided = tiles % most if choice.divide else 0
    blocks = 2 * (most if divided else min(most, tiles))
    parts, flags = (blocks * 128 * columns * 4, WARPGROUPS * blocks) if divided else (0, 0)
    return Launch(function, (blocks, 1, 1), (384, 1, 1), *boxes, divided, parts, flags, output)


def most_flags(chip: CudaChip) -> int:
    """Flags that any launch on a chip wants at most."""
    return WARPGROUPS * chip.multiprocessors


def product(
    codes: torch.Tensor, scales: torch.Tensor, flags: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, output: str, chip: CudaChip, *, choice: Choice | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [ceil(k / 128), m padded to a multiple of 4] f32, as quantize_block_by_column gives them
    flags         [most_flags(chip)] int32 zeros, and zeros again afterwards; no other product may use them meanwhile
    weight        [n, k] e4m3, contiguous; n and k multiples of 16
    weight_scale  [ceil(n / 128), ceil(k / 128)] f32, contiguous
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, output, chip, codes.device.index or 0, choice)
    out = output_of(m, n, output, codes.device)
    parts = torch.empty(launch.part_bytes, dtype=torch.uint8, device=codes.device)
    maps = map_of(codes, "u8", launch.codes), map_of(weight, "u8", launch.weight), map_of(scales, "f32", launch.scales)
    addresses = (weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    start(launch, maps, addresses, (m, n, ceil_div(k, DEPTH)), parts=(parts.data_ptr(), flags.data_ptr()))
    return out


def start(
    launch: Launch, maps: tuple[TensorMap, TensorMap, TensorMap], addresses: tuple[int, int, int],
    sizes: tuple[int, int, int], *, parts: tuple[int, int],
) -> None:  # fmt: skip
    """Launch.

    maps        of the codes, the weight and the codes' scales
    addresses   of the weight's scales, the bias (0: none) and the output
    sizes       m, n, and blocks of k
    parts       addresses of part_bytes bytes and of the flags
    """
    codes, weight, scales = maps
    every = (codes.address, weight.address, scales.address)
    if launch.divided is None:
        launch.function(launch.grid, launch.block, (*addresses, *sizes), every)
    else:
        (m, n, _), size = sizes, 4 if launch.output == "f32" else 2
        out = tensor_map(addresses[2], launch.output, m, n, n * size, (16, 128 // size))
        launch.function(launch.grid, launch.block, (*addresses, *parts, *sizes, launch.divided), (*every, out.address))


@dataclass(frozen=True, slots=True)
class Scratch:
    """The memory of quantized inputs [m, k] between the two launches: codes, scales by column, flags, parts.

    bytes    in all; `scales`, `flags` and `parts` are where these begin
    padded   scales of a block of k
    maps     of codes and scales, by the address of the memory: the allocator gives the same ones again and again
    """

    bytes: int
    scales: int
    flags: int
    parts: int
    padded: int
    maps: Callable[[int], tuple[TensorMap, TensorMap]]


@lru_cache(maxsize=4096)
def scratch(m: int, k: int, launch: Launch) -> Scratch:
    """What quantized inputs [m, k] need for a launch."""
    blocks, padded = ceil_div(k, DEPTH), ceil_div(m, 4) * 4
    scales = ceil_div(m * k, 256) * 256
    flags = scales + ceil_div(blocks * padded * 4, 256) * 256
    parts = flags + ceil_div(launch.flags * 4, 256) * 256

    def make(address: int) -> tuple[TensorMap, TensorMap]:
        return (
            tensor_map(address, "u8", m, k, k, launch.codes),
            tensor_map(address + scales, "f32", blocks, padded, padded * 4, launch.scales),
        )

    return Scratch(parts + launch.part_bytes, scales, flags, parts, padded, lru_cache(maxsize=256)(make))
