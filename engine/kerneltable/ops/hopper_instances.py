"""Which instances of the Hopper sources are ever asked for: what must compile for SM90, with or without one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, cast

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import hopper_fp8_block, hopper_w8a16
from kerneltable.ops.cuda_launch import Function
from kerneltable.ops.hopper import DTYPE_CODES, SHARED_BYTES, TARGET
from kerneltable.ops.nvrtc import compile_cubin
from kerneltable.ops.settings import CompileSettings
from kerneltable.ops.sources import source

Instance = tuple[str, tuple[tuple[str, int], ...]]
"""A source below csrc, and its compile-time numbers."""

MULTIPROCESSORS = 132
SHAPES = ((16, 16), (4096, 7168), (24576, 1536), (576, 7168))
ROWS = (1, 17, 128, 1024)


def instances(shapes: Iterable[tuple[int, int]] = SHAPES, rows: Iterable[int] = ROWS) -> list[Instance]:
    """Every instance that layers of these (n, k) ask for at these m, without the quantizer of inputs.

    errors    KernelUnavailable for one that wants more shared memory than SM90 has
    """
    found: set[Instance] = set()

    def note(file: str, name: str, _types: Any, shared: int, _device: int, defines: Any) -> Function:
        if shared > SHARED_BYTES:
            raise KernelUnavailable(f"{file}: {name} wants {shared} bytes of shared memory; SM90 has {SHARED_BYTES}")
        found.add((file, defines))
        return cast("Function", None)

    for (n, k), m in product(shapes, rows):
        hopper_fp8_block.load(hopper_fp8_block.variant(m, n, k, MULTIPROCESSORS), "bf16", 0, make=note)
        for scales in (hopper_w8a16.BY_ROW, hopper_w8a16.BY_BLOCK, hopper_w8a16.BY_32):
            variant = hopper_w8a16.variant(m, n, k, scales, MULTIPROCESSORS)
            hopper_w8a16.load(variant, scales, "bf16", "bf16", 0, make=note)
    return sorted(found)


def compile_few(settings: CompileSettings, most: int = 12) -> None:
    """Compile a spread of at most `most` instances, and the quantizer for every input dtype.

    errors    KernelUnavailable with the compiler's own words
    """
    every = instances()
    chosen = every[:: -(-len(every) // most)]
    chosen += [("cuda/quantize_block.cu", (("KT_IN", code),)) for code in DTYPE_CODES.values()]
    for file, defines in chosen:
        compile_cubin(source(file), TARGET, settings, dict(defines))
