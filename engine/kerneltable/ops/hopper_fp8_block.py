"""Block-scaled FP8 products on Hopper: which instance of csrc/cuda serves how many rows, and its launch.

Few rows stream the weight once (hopper_fp8_block_stream.cu), many keep the tensor cores busy (hopper_fp8_block.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER, Function, TensorMap
from kerneltable.ops.hopper import (
    DTYPE_CODES,
    FLAGS,
    PARTS_BYTES,
    ceil_div,
    map_of,
    output_of,
    tensor_map,
    tiles_to_divide,
)
from kerneltable.ops.hopper_fp8_choice import (
    DEPTH,
    FIXED,
    INPUT,
    NOTHING,
    WEIGHT,
    Choice,
    Parted,
    Stream,
    tile_bytes,
    variant,
)

SIZES = (INT32, INT32, INT32)
STREAM_TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER, *SIZES)
PARTED_TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, BY_VALUE, POINTER, POINTER, *SIZES)
TILED_TYPES = (BY_VALUE, *PARTED_TYPES[:-3], POINTER, POINTER, *SIZES, INT32)


def instances(products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and an output dtype."""
    choices = (variant.__wrapped__(*product) for product in products)
    yield from dict.fromkeys(instance_of(choice, output) for choice in choices)


def fixed_instances(_products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks for the kernel that has one instance."""
    yield instance_of(FIXED, output)


def instance_of(choice: Choice, output: str) -> Instance:
    """The instance for an output dtype ("bf16", "f16", "f32")."""
    types: tuple[Any, ...]
    numbers = {"COLUMNS": choice.columns, "STAGES": choice.stages, "OUT": DTYPE_CODES[output]}
    if isinstance(choice, Stream):
        name, types, shared = "hopper_fp8_block_stream", STREAM_TYPES, choice.shared_bytes
        numbers |= {"SPLIT": choice.split}
    elif isinstance(choice, Parted):
        name, types = "hopper_fp8_block_parts", PARTED_TYPES
        shared = choice.stages * tile_bytes(choice.columns)
        numbers |= {"SPLIT": choice.split}
    else:
        name, types, shared = "hopper_fp8_block", TILED_TYPES, choice.shared_bytes(output)
        apart = int(choice.apart and output != "f32")
        numbers |= {"COMMON": choice.common, "GROUP": choice.group, "CHUNKS": choice.chunks, "APART": apart}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance(f"cuda/{name}.cu", name, types, shared, defines, early=True)


Box = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is the same for every call with one number of rows: worked out once, looked up afterwards.

    weight, codes, scales   rows and columns of one copy of each
    factors                 of one copy of the weight's scales; None: threads read them
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
    factors: Box | None = None
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
    if isinstance(choice, Parted):
        grid = (choice.split * ceil_div(m, 128) * ceil_div(n, columns), 1, 1)
        return Launch(function, grid, (384, 1, 1), (columns, DEPTH), (128, DEPTH), (1, 128), _factors(columns))
    members = 1 if choice.common == NOTHING else 2
    rows, across = 256 if choice.common == WEIGHT else 128, 2 * columns if choice.common == INPUT else columns
    tiles, most = ceil_div(m, rows) * ceil_div(n, across), chip.multiprocessors // members
    codes, weight = 64 if choice.common == INPUT else 128, columns // 2 if choice.common == WEIGHT else columns
    boxes = ((weight, DEPTH), (codes, DEPTH), (1, 128), _factors(columns))
    divided = tiles_to_divide(tiles, most) if choice.divide else 0
    blocks = members * (most if divided else min(most, tiles))
    parts, flags = (blocks * columns * PARTS_BYTES, blocks * FLAGS) if divided else (0, 0)
    return Launch(function, (blocks, 1, 1), (384, 1, 1), *boxes, divided, parts, flags, output)


def _factors(columns: int) -> Box:
    """One copy of the weight's scales, for a block of k: those of one or two blocks of rows."""
    return (1 if 128 % columns == 0 else 2, 4)


@dataclass(frozen=True, slots=True, eq=False)
class WeightScale:
    """The scales of a weight [n, k], as threads read them and as the copy engine does.

    plain   [ceil(n / 128), ceil(k / 128)] f32, contiguous: neighbours along k share a line of the cache
    apart   [ceil(n / 128), 4 * ceil(k / 128)] f32, contiguous: every fourth number is a scale, the others are 0. The
            engine fetches 16 bytes at least, and from multiples of 16 alone
    """

    plain: torch.Tensor
    apart: torch.Tensor


def weight_scale_of(scale: torch.Tensor) -> WeightScale:
    """Both forms of scales [ceil(n / 128), ceil(k / 128)] f32."""
    rows, columns = scale.shape
    wide = torch.zeros(rows, columns, 4, dtype=torch.float32, device=scale.device)
    wide[:, :, 0] = scale
    return WeightScale(scale.contiguous(), wide.view(rows, 4 * columns))


def most_flags(chip: CudaChip) -> int:
    """Flags that any launch on a chip wants at most."""
    return FLAGS * chip.multiprocessors


def product(
    codes: torch.Tensor, scales: torch.Tensor, flags: torch.Tensor, weight: torch.Tensor, weight_scale: WeightScale,
    bias: torch.Tensor | None, output: str, chip: CudaChip, *, choice: Choice | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [ceil(k / 128), m padded to a multiple of 4] f32, as quantize_block_by_column gives them
    flags         [most_flags(chip)] int32 zeros, and zeros again afterwards; no other product may use them meanwhile
    weight        [n, k] e4m3, contiguous; n and k multiples of 16
    weight_scale  its scales
    bias          [n] f32, contiguous, or None
    output        "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, output, chip, codes.device.index or 0, choice)
    out = output_of(m, n, output, codes.device)
    parts = torch.empty(launch.part_bytes, dtype=torch.uint8, device=codes.device)
    maps = [
        map_of(codes, "u8", launch.codes),
        map_of(weight, "u8", launch.weight),
        map_of(scales, "f32", launch.scales),
    ]
    if launch.factors:
        maps.append(map_of(weight_scale.apart, "f32", launch.factors))
    every = tuple(one.address for one in maps)
    addresses = (weight_scale.plain.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    start(launch, every, addresses, (m, n, ceil_div(k, DEPTH)), parts=(parts.data_ptr(), flags.data_ptr()))
    return out


def start(
    launch: Launch, maps: tuple[int, ...], addresses: tuple[int, int, int], sizes: tuple[int, int, int], *,
    parts: tuple[int, int],
) -> None:  # fmt: skip
    """Launch.

    maps        addresses of those of the codes, the weight, the codes' scales and, with launch.factors, the weight's
    addresses   of the weight's scales, the bias (0: none) and the output
    sizes       m, n, and blocks of k
    parts       addresses of part_bytes bytes and of the flags
    """
    _, bias, output = addresses
    if launch.factors is None:
        launch.function(launch.grid, launch.block, (*addresses, *sizes), maps)
    elif launch.divided is None:
        launch.function(launch.grid, launch.block, (bias, output, *sizes), maps)
    else:
        (m, n, _), size = sizes, 4 if launch.output == "f32" else 2
        out = tensor_map(output, launch.output, m, n, n * size, (16, 128 // size))
        arguments = (bias, output, *parts, *sizes, launch.divided)
        launch.function(launch.grid, launch.block, arguments, (*maps, out.address))


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
