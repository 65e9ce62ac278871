"""Input quantizers of csrc/cuda with one scale a row, or one for the whole input, given or its own.

The bytes are those of ops/torch_fp8: quantize_token, quantize_static, quantize_tensor. No atomics: the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kerneltable.ops.cuda_code import Instance, Product, load
from kerneltable.ops.cuda_launch import INT32, INT64, POINTER, Function
from kerneltable.ops.cuda_vectors import DTYPES, Known, Launch, Place, deep, width_of
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div

TOKEN_TYPES = (POINTER, POINTER, POINTER, POINTER, INT64, INT64)
LARGEST_TYPES = (POINTER, POINTER, INT64, INT64, INT64, INT64)
TENSOR_TYPES = (*(POINTER,) * 6, INT32, INT64, INT64, INT64)
HELD, MOST_THREADS = 4, 1024
SMALL = HELD * MOST_THREADS
"""Vectors of an input that one block of threads quantizes with one scale, in one launch."""

THREADS = 256


def token_instance(dtype: str, width: int, held: int, capped: int) -> Instance:
    """The instance for an input dtype; held vectors stay in the registers of a thread, capped 1 limits scales."""
    numbers = {"IN": DTYPE_CODES[dtype], "WIDTH": width, "HELD": held, "CAPPED": capped}
    defines = tuple((f"KT_{key}", value) for key, value in sorted(numbers.items()))
    return Instance("cuda/quantize_token.cu", "quantize_token", TOKEN_TYPES, 0, defines, early=True)


def tensor_instance(name: str, dtype: str, width: int, each: int) -> Instance:
    """The instance of "find_largest" or "quantize_tensor"; each vectors of a thread are read at once."""
    types = LARGEST_TYPES if name == "find_largest" else TENSOR_TYPES
    defines = (("KT_EACH", each), ("KT_IN", DTYPE_CODES[dtype]), ("KT_WIDTH", width))
    return Instance("cuda/quantize_tensor.cu", name, types, 0, defines, early=True)


def instances(products: Iterable[Product], input: str, _output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products and an input dtype."""
    for width in dict.fromkeys(width_of(input, one.k) for one in products):
        yield from _all_of(input, width)


def _all_of(dtype: str, width: int) -> Iterator[Instance]:
    for deepness in (1, HELD):
        yield from (token_instance(dtype, width, deepness, capped) for capped in (0, 1))
        yield from (tensor_instance(name, dtype, width, deepness) for name in ("find_largest", "quantize_tensor"))


class TokenQuantizer:
    """Quantizes x [m, k] with one scale a row."""

    def __init__(self, place: Place, upper: torch.Tensor | None) -> None:
        """Compile what calls will launch.

        upper    [] f32 on the device, the largest scale allowed, or None
        errors   KernelUnavailable without NVRTC or cuda-bindings
        """
        self._place, self._upper, self._limit = place, upper, _address(upper)
        self._by_held = {held: self._function(held) for held in (1, HELD)}
        self._known = Known(place, self._launch)
        self._codes = torch.empty(0, dtype=torch.float8_e4m3fn, device=place.device)
        self._scales = torch.empty(0, dtype=torch.float32, device=place.device)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k], any strides, m at least 1 -> codes [m, k] e4m3, contiguous, and scales [m, 1] f32.

        errors   KernelInputError when x is of another k or dtype, or elsewhere
        """
        x, launch = self._known(x)
        m, k = x.shape
        codes, scales = self._codes.new_empty(m, k), self._scales.new_empty(m, 1)
        pointers = (x.data_ptr(), self._limit, codes.data_ptr(), scales.data_ptr())
        launch.function(launch.grid, launch.block, (*pointers, k, x.stride(0)))
        return codes, scales

    def _launch(self, m: int) -> Launch:
        vectors = self._place.k // self._place.width
        few = m <= 2 * self._place.chip.multiprocessors and vectors <= MOST_THREADS
        return Launch(self._by_held[1 if few else HELD], (m, 1, 1), (_threads(vectors, 1 if few else HELD), 1, 1))

    def _function(self, held: int) -> Function:
        one = token_instance(DTYPES[self._place.dtype], self._place.width, held, int(self._upper is not None))
        return load(one, self._place.chip, self._place.index)


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a matrix is cut for one scale: chunks of a row, blocks of threads that look for the largest, all chunks."""

    each: int
    of_row: int
    seekers: int
    total: int


class TensorQuantizer:
    """Quantizes x [m, k] with one scale for all of it. What is contiguous is read as one row."""

    def __init__(self, place: Place, scale: torch.Tensor | None, upper: torch.Tensor | None) -> None:
        """Compile what calls will launch.

        scale    [] f32 on the device; None: that of the largest magnitude of x
        upper    [] f32 on the device, the largest scale allowed then, or None
        errors   KernelUnavailable without NVRTC or cuda-bindings
        """
        self._place, self._scale, self._upper, self._limit = place, scale, upper, _address(upper)
        self._small = self._load(token_instance, HELD, int(upper is not None)) if scale is None else None
        names = ("quantize_tensor",) if scale is not None else ("find_largest", "quantize_tensor")
        self._functions = {
            (name, each): self._load(partial(tensor_instance, name), each) for name in names for each in (1, HELD)
        }
        self._known = Known(place, lambda m: self._chunks(1, m * place.k))
        self._codes = torch.empty(0, dtype=torch.float8_e4m3fn, device=place.device)
        self._scales = torch.empty(0, dtype=torch.float32, device=place.device)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k], any strides, m at least 1 -> codes [m, k] e4m3, contiguous, and the scale [] f32.

        errors   KernelInputError when x is of another k or dtype, or elsewhere
        """
        x, chunks = self._known(x)
        m, k = x.shape
        codes, columns, step = self._codes.new_empty(m, k), m * k, m * k
        if not x.is_contiguous():
            chunks, columns, step = self._chunks(m, k), k, x.stride(0)
        if self._scale is not None:
            self._write((x.data_ptr(), 0, 0, self._scale.data_ptr(), codes.data_ptr(), 0), chunks, columns, step)
            return codes, self._scale
        scale = self._scales.new_empty(())
        addresses = x.data_ptr(), codes.data_ptr(), scale.data_ptr()
        if chunks.total == 0 and self._small is not None:
            threads = (_threads(columns // self._place.width, HELD), 1, 1)
            self._small((1, 1, 1), threads, (addresses[0], self._limit, *addresses[1:], columns, step))
            return codes, scale
        largest = self._scales.new_empty(chunks.seekers)
        sizes = (chunks.total, chunks.of_row, columns, step)
        find = self._functions["find_largest", chunks.each]
        find((chunks.seekers, 1, 1), (THREADS, 1, 1), (addresses[0], largest.data_ptr(), *sizes))
        self._write((addresses[0], largest.data_ptr(), self._limit, 0, *addresses[1:]), chunks, columns, step)
        return codes, scale

    def _write(self, addresses: tuple[int, ...], chunks: Chunks, columns: int, step: int) -> None:
        write = self._functions["quantize_tensor", chunks.each]
        sizes = (chunks.seekers, chunks.of_row, columns, step)
        write((chunks.total, 1, 1), (THREADS, 1, 1), (*addresses, *sizes))

    def _chunks(self, rows: int, columns: int) -> Chunks:
        """How so many rows are cut; total 0: one block of threads quantizes all, scale included."""
        width, units = self._place.width, self._place.chip.multiprocessors
        if self._scale is None and rows == 1 and columns <= SMALL * width:
            return Chunks(HELD, 0, 0, 0)
        each = deep(rows, columns, width, units)
        of_row = ceil_div(columns, THREADS * each * width)
        return Chunks(each, of_row, min(rows * of_row, 2 * units), rows * of_row)

    def _load(self, instance: Callable[..., Instance], *numbers: int) -> Function:
        place = self._place
        return load(instance(DTYPES[place.dtype], place.width, *numbers), place.chip, place.index)


def _threads(vectors: int, held: int) -> int:
    """Threads that hold so many vectors, whole warps of them."""
    return min(MOST_THREADS, ceil_div(ceil_div(vectors, held), 32) * 32)


def _address(number: torch.Tensor | None) -> int:
    return 0 if number is None else number.data_ptr()
