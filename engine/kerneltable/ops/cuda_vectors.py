"""How the input quantizers of csrc/cuda read a matrix: by vectors of a row. What is the same for every call is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_launch import Function, Size

DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
MOST_SHAPES = 4096
"""Shapes of x that a quantizer remembers at a time."""

RESIDENT_THREADS = 2048
"""Most threads of a multiprocessor; fewer on some chips, where a little less than this is under way."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A function and its grid, for one shape of x."""

    function: Function
    grid: Size
    block: Size


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quantizer runs, and what it reads: x [m, k] of a dtype on a device."""

    k: int
    dtype: torch.dtype
    chip: CudaChip
    device: torch.device

    @property
    def index(self) -> int:
        return self.device.index or 0

    @property
    def width(self) -> int:
        return width_of(DTYPES[self.dtype], self.k)


def width_of(dtype: str, k: int) -> int:
    """Numbers of a row that are loaded at once, 16 bytes where k allows it; rows of codes are k bytes apart."""
    return next(width for width in ((4, 1) if dtype == "f32" else (8, 4, 1)) if k % width == 0)


def deep(m: int, k: int, width: int, multiprocessors: int, *, enough: float = 4.0) -> int:
    """Loads that a thread has under way: 4 where all threads of the chip at once would have `enough` each, else 1."""
    return 4 if m * k >= enough * width * RESIDENT_THREADS * multiprocessors else 1


def readable(x: torch.Tensor, width: int) -> torch.Tensor:
    """x [m, k], or a copy of it whose rows can be read `width` numbers at a time."""
    aligned = x.data_ptr() % (width * x.element_size()) == 0
    if aligned and x.stride(1) == 1 and x.stride(0) % width == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it, contiguous and at a multiple of 16 bytes, as copies of tiles and vectors want it."""
    whole = tensor.contiguous()
    return whole if whole.data_ptr() % 16 == 0 else whole.clone()


def rows_of(x: torch.Tensor, width: int) -> tuple[torch.Tensor, int]:
    """x [m, k] as it can be read `width` numbers at a time, and how many numbers its rows are apart."""
    if x.is_contiguous() and not x.data_ptr() % 16:
        return x, x.shape[1]
    x = readable(x, width)
    return x, x.stride(0)


class Known:
    """What each shape of x needs, worked out at its first call; x itself checked then."""

    def __init__(self, place: Place, make: Callable[[int], Any]) -> None:
        """make   gives what m rows need."""
        self.place = place
        self.make = make
        self.shapes: dict[torch.Size, Any] = {}

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """x as it can be read, and what its shape needs.

        errors   KernelInputError when x is not [m, k] of the dtype on the device, m at least 1
        """
        found = self.shapes.get(x.shape)
        if found is None or x.dtype is not self.place.dtype:
            found = self._new(x)
        if x.is_contiguous() and not x.data_ptr() % 16:
            return x, found
        return readable(x, self.place.width), found

    def _new(self, x: torch.Tensor) -> Any:
        k, dtype = self.place.k, self.place.dtype
        if x.dim() != 2 or x.shape[1] != k or x.dtype is not dtype or x.device != self.place.device or not x.numel():
            raise KernelInputError(
                f"quantizer: x must be [m, {k}] {dtype} on {self.place.device}, m at least 1; found {list(x.shape)} "
                f"{x.dtype} on {x.device}"
            )
        if len(self.shapes) >= MOST_SHAPES:
            self.shapes.clear()
        found = self.shapes[x.shape] = self.make(x.shape[0])
        return found
