"""Instances of the CUDA sources in csrc/cuda: what one is made of, compiling it for a chip, loading it on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from kerneltable.errors import KernelUnavailable, ShapeUnavailable
from kerneltable.ops.cache_entry import Binary
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_launch import Function, load_function
from kerneltable.ops.nvrtc import compile_cubin
from kerneltable.ops.settings import CompileSettings, active
from kerneltable.ops.sources import source


class Product(NamedTuple):
    """Sizes of a product that may be asked for, and the multiprocessors of the device that is asked."""

    m: int
    n: int
    k: int
    multiprocessors: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a CUDA source.

    file          below csrc, e.g. "cuda/hopper_w8a16.cu"
    name          of its extern "C" function
    types         of that function's arguments, as cuda_launch.Function takes them
    shared_bytes  dynamic shared memory of each block
    defines       the compile-time numbers of the source, e.g. (("KT_COLUMNS", 64), ...)
    early         its launches start while the kernel before them still runs, on chips that can; see cuda_launch
    """

    file: str
    name: str
    types: tuple[Any, ...]
    shared_bytes: int
    defines: tuple[tuple[str, int], ...]
    early: bool = False

    def __hash__(self) -> int:
        return hash((self.file, self.defines))


def compiled(instance: Instance, chip: CudaChip, settings: CompileSettings) -> Binary:
    """The cubin of an instance for a chip, from the cache or compiled now.

    errors    ShapeUnavailable when it wants more shared memory than the chip has; KernelUnavailable without NVRTC, when
              compiling is forbidden and no binary is there, when the source has no such function, or with the
              compiler's own words
    """
    if instance.shared_bytes > chip.shared_bytes:
        raise ShapeUnavailable(
            f"{instance.file}: {instance.name} wants {instance.shared_bytes} bytes of shared memory for "
            f"{_said(instance.defines)}; {chip.name} has {chip.shared_bytes}"
        )
    macros: dict[str, str | int] = {**dict(chip.macros), **dict(instance.defines)}
    binary = compile_cubin(source(instance.file), chip.target, settings, macros)
    if f".text.{instance.name}\0".encode() not in binary.content:  # a section of the ELF file for each function
        raise KernelUnavailable(
            f'{instance.file}: compiled, but has no function {instance.name}; it must define one, extern "C"'
        )
    return binary


@lru_cache(maxsize=4096)
def load(instance: Instance, chip: CudaChip, device: int) -> Function:
    """An instance, compiled or taken from the cache, and loaded on a device.

    device    index of the torch device
    errors    those of `compiled`; KernelUnavailable without cuda-bindings or when the driver refuses the code
    """
    binary = compiled(instance, chip, active())
    shared, early = instance.shared_bytes, instance.early and chip.overlaps
    return load_function(binary.content, instance.name, instance.types, shared, device, early=early)


def _said(defines: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name}={value}" for name, value in defines)
