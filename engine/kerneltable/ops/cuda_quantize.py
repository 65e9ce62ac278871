"""Input quantizers of csrc/cuda with a scale for each group of columns: 128 with float32 scales, 32 with e8m0.

The bytes are those of ops/torch_fp8.quantize_block and ops/torch_mx.quantize_mx.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, INT64, POINTER
from kerneltable.ops.cuda_vectors import DTYPES, Known, Launch, Place, deep, readable, width_of
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div

BLOCK, MX_BLOCK = 128, 32
TYPES = (POINTER, POINTER, POINTER, INT32, INT32, INT32, INT64, INT32, INT32, POINTER, INT32)
THREADS = 256
ENOUGH = 2.5
"""Vectors for each thread of the chip from which on a thread takes four rows: 1024 x 7168 takes 7.1 instead of 7.8 us
so, 4096 x 1536 6.4 instead of 6.9, 256 x 16384 5.13 instead of 5.06 (H200, bf16)."""


def instance_of(dtype: str, width: int, group: int, rows: int) -> Instance:
    """The instance for an input dtype ("bf16", "f16", "f32"), groups of 128 or 32, and 1 or 4 rows a thread."""
    numbers = {"IN": DTYPE_CODES[dtype], "WIDTH": width, "GROUP": group, "ROWS": rows}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance("cuda/quantize_block.cu", "quantize_block", TYPES, 0, defines, early=True)


def instances(products: Iterable[Product], input: str, _output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance with groups of 128 for these products and an input dtype."""
    yield from _instances(products, input, BLOCK)


def mx_instances(products: Iterable[Product], input: str, _output: str) -> Iterator[Instance]:
    """The same with groups of 32."""
    yield from _instances(products, input, MX_BLOCK)


def _instances(products: Iterable[Product], input: str, group: int) -> Iterator[Instance]:
    for width in dict.fromkeys(width_of(input, one.k) for one in products):
        yield from (instance_of(input, width, group, rows) for rows in (1, 4))


def quantizer(dtype: str, chip: CudaChip, device: int, k: int = BLOCK, group: int = BLOCK) -> None:
    """Compile and load all that quantizing [m, k] of an input dtype asks for, whatever m is."""
    for one in _instances((Product(1, 1, k, chip.multiprocessors),), dtype, group):
        load(one, chip, device)


@lru_cache(maxsize=65536)
def prepare(m: int, k: int, dtype: str, chip: CudaChip, device: int, group: int = BLOCK) -> Launch:
    """The instance and the grid for m rows of codes."""
    width = width_of(dtype, k)
    rows = deep(m, k, width, chip.multiprocessors, enough=ENOUGH)
    threads = ceil_div(m, rows) * ceil_div(k, group) * min(32, group // width)
    function = load(instance_of(dtype, width, group, rows), chip, device)
    return Launch(function, (ceil_div(threads, THREADS), 1, 1), (THREADS, 1, 1))


class GroupQuantizer:
    """Quantizes x [m, k] in groups of 128 columns (f32 scales) or 32 (e8m0).

    by_column  True: codes and scales are filled up to a multiple of 4 rows (codes 0), and the scales of a group lie
               together, as cuBLASLt reads them
    """

    def __init__(self, place: Place, group: int, *, by_column: bool = False) -> None:
        """Compile what calls will launch.

        errors   KernelUnavailable without NVRTC or cuda-bindings
        """
        self.group, self.by_column = group, by_column
        quantizer(DTYPES[place.dtype], place.chip, place.index, place.k, group)
        self._known = Known(place, self._launch)
        self._place = place
        self._codes = torch.empty(0, dtype=torch.float8_e4m3fn, device=place.device)
        self._scales = torch.empty(0, dtype=torch.uint8 if group == MX_BLOCK else torch.float32, device=place.device)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize rows of x.

        x        [m, k], any strides, m at least 1
        returns  codes [M, k] e4m3, contiguous, and scales [M, ceil(k / group)]: f32, or uint8 holding e8m0; M is m, by
                 column m rounded up to a multiple of 4
        errors   KernelInputError when x is of another k or dtype, or elsewhere
        """
        x, (launch, rows, groups) = self._known(x)
        m, k = x.shape
        codes = self._codes.new_empty(rows, k)
        scales = self._scales.new_empty(groups, rows) if self.by_column else self._scales.new_empty(rows, groups)
        steps = (1, rows) if self.by_column else (groups, 1)
        pointers = (x.data_ptr(), codes.data_ptr(), scales.data_ptr())
        launch.function(launch.grid, launch.block, (*pointers, m, rows, k, x.stride(0), *steps, 0, 0))
        return codes, scales.t() if self.by_column else scales

    def _launch(self, m: int) -> tuple[Launch, int, int]:
        """For m rows: what is launched, rows of codes, groups of columns."""
        place, rows = self._place, ceil_div(m, 4) * 4 if self.by_column else m
        launch = prepare(rows, place.k, DTYPES[place.dtype], place.chip, place.index, self.group)
        return launch, rows, ceil_div(place.k, self.group)


def quantize_block_by_column(
    x: torch.Tensor, chip: CudaChip, cleared: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows of x in groups of 128 columns.

    x        [m, k] bf16, f16 or f32 on a CUDA device from SM89 on, m at least 1
    cleared  int32, contiguous, on the same device: set to 0 in the same launch; None: nothing is
    returns  codes [m, k] e4m3, contiguous, and scales [ceil(k / 128), m padded to a multiple of 4] f32: those of row i
             are column i; what is beyond m is not set
    """
    m, k = x.shape
    x = readable(x, width_of(DTYPES[x.dtype], k))
    groups, padded = ceil_div(k, BLOCK), ceil_div(m, 4) * 4
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(groups, padded, dtype=torch.float32, device=x.device)
    launch = prepare(m, k, DTYPES[x.dtype], chip, x.device.index or 0)
    pointers = (x.data_ptr(), codes.data_ptr(), scales.data_ptr())
    flags = (0, 0) if cleared is None else (cleared.data_ptr(), cleared.numel())
    launch.function(launch.grid, launch.block, (*pointers, m, m, k, x.stride(0), 1, padded, *flags))
    return codes, scales
