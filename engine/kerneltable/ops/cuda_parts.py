"""Adding the partial sums of a product whose k was split over the grid, in order: csrc/cuda/add_parts.cu."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch

from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, POINTER
from kerneltable.ops.cuda_vectors import Launch
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div

THREADS = 256
TYPES = (POINTER, POINTER, POINTER, INT32, INT32, INT32)


def instance_of(output: str) -> Instance:
    """The instance for an output dtype: "bf16", "f16" or "f32"."""
    return Instance("cuda/add_parts.cu", "add_parts", TYPES, 0, (("KT_OUT", DTYPE_CODES[output]),))


def instances(_products: Iterable[Product], _input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: the instance for an output dtype; sizes do not matter."""
    yield instance_of(output)


@lru_cache(maxsize=65536)
def prepare(m: int, n: int, output: str, chip: CudaChip, device: int) -> Launch:
    """The instance and the grid for sums [m, n]."""
    function = load(instance_of(output), chip, device)
    return Launch(function, (ceil_div(m * n, 4 * THREADS), 1, 1), (THREADS, 1, 1))


def add_parts(
    sums: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, output: str, chip: CudaChip
) -> torch.Tensor:
    """Write the sum of all parts, plus bias, to out, rounded once.

    sums     [parts, m, n] f32, contiguous, n a multiple of 4
    bias     [n] f32, contiguous, or None
    out      [m, n] of dtype output ("bf16", "f16", "f32"), contiguous
    returns  out
    """
    count, m, n = sums.shape
    arguments = (sums.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), m, n, count)
    launch = prepare(m, n, output, chip, out.device.index or 0)
    launch.function(launch.grid, launch.block, arguments)
    return out
