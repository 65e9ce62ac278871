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
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, INT64, POINTER, TensorMap
from kerneltable.ops.hopper import FLAGS, ceil_div, map_of, output_of, tensor_map
from kerneltable.ops.hopper_fp8_choice import DEPTH, FIXED, Choice, Parted, Stream, variant
from kerneltable.ops.hopper_fp8_launch import Launch, instance, launch_of

STREAM_TYPES = (BY_VALUE, BY_VALUE, BY_VALUE, POINTER, POINTER, POINTER, INT32, INT32, INT32)
PARTED_TYPES = (*[BY_VALUE] * 4, *[POINTER] * 6, *[INT32] * 5, INT64)
TILED_TYPES = (BY_VALUE, *PARTED_TYPES, INT32, POINTER, POINTER)
MADE = (0, 0, 0, 0)
"""Of the tiled kernels' arguments x, codes, scales and counters, where a launch before them has made the input."""


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and dtypes of input and output."""
    choices = (variant.__wrapped__(*product) for product in products)
    yield from dict.fromkeys(instance_of(choice, input, output) for choice in choices)


def fixed_instances(_products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks for the kernel that has one instance."""
    yield instance_of(FIXED, input, output)


def instance_of(choice: Choice, input: str, output: str) -> Instance:
    """The instance for dtypes of input and output ("bf16", "f16", "f32")."""
    if isinstance(choice, Stream):
        return instance("hopper_fp8_block_stream", STREAM_TYPES, choice, output)
    if isinstance(choice, Parted):
        return instance("hopper_fp8_block_parts", PARTED_TYPES, choice, output, input)
    return instance("hopper_fp8_block", TILED_TYPES, choice, output, input)


@lru_cache(maxsize=65536)
def prepare(
    m: int, n: int, k: int, input: str, output: str, chip: CudaChip, device: int, choice: Choice | None = None
) -> Launch:
    """The instance and the grid for a product of [m, k] with [n, k]; choice None lets `variant` choose."""
    choice = choice or variant(m, n, k, chip.multiprocessors)
    function = load(instance_of(choice, input, output), chip, device)
    return launch_of(function, choice, m, n, output, chip.multiprocessors)


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
    bias: torch.Tensor | None, dtypes: tuple[str, str], chip: CudaChip, *, choice: Choice | None = None,
) -> torch.Tensor:  # fmt: skip
    """codes times weight transposed, scaled, plus bias, rounded once.

    codes         [m, k] e4m3, contiguous, m at least 1
    scales        [ceil(k / 128), m padded to a multiple of 4] f32, as quantize_block_by_column gives them
    flags         [most_flags(chip)] int32 zeros, and zeros again afterwards; no other product may use them meanwhile
    weight        [n, k] e4m3, contiguous; n and k multiples of 16
    weight_scale  its scales
    bias          [n] f32, contiguous, or None
    dtypes        of the input that was quantized, and of the output: "bf16", "f16" or "f32"
    choice        None lets `variant` choose
    returns       [m, n] of the output's dtype, contiguous
    """
    (m, k), n = codes.shape, weight.shape[0]
    launch = prepare(m, n, k, *dtypes, chip, codes.device.index or 0, choice)
    out = output_of(m, n, dtypes[1], codes.device)
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
    start(launch, every, addresses, (m, n, k), parts=(parts.data_ptr(), flags.data_ptr()))
    return out


def start(
    launch: Launch, maps: tuple[int, ...], addresses: tuple[int, int, int], sizes: tuple[int, int, int], *,
    parts: tuple[int, int],
) -> None:  # fmt: skip
    """Launch.

    maps        addresses of those of the codes, the weight, the codes' scales and, with launch.factors, the weight's
    addresses   of the weight's scales, the bias (0: none) and the output
    sizes       m, n, k
    parts       addresses of part_bytes bytes and of the flags
    """
    _, bias, output = addresses
    m, n, k = sizes
    if launch.factors is None:
        launch.function(launch.grid, launch.block, (*addresses, m, n, ceil_div(k, DEPTH)), maps)
        return
    arguments = (*MADE, bias, output, *sizes, 0, 0, 0)
    if launch.divided is None:
        launch.function(launch.grid, launch.block, arguments, maps)
    else:
        every = (*maps, launch.output_map(output, m, n).address)
        launch.function(launch.grid, launch.block, (*arguments, launch.divided, *parts), every)


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
