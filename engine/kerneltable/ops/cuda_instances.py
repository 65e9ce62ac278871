"""Which instances of csrc/cuda are ever asked for: what `kerneltable build` compiles, and `kerneltable check --deep`.

To register device code: an ops module has one function

    def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]

which yields every instance that these products can ask for with this dtype of the input and of the output, by the same
functions that choose and describe the instance at a launch (nothing if it does not take the dtype). Then MODULES names
that function under each kernel that launches what it yields, a kernel's input quantizer included. Nothing else is
needed: tests hold that every file of csrc/cuda is reached, and that what random products ask for is among the
instances of `usual`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from math import ceil
from types import MappingProxyType

from kerneltable.ops import (
    cuda_parts,
    cuda_quantize,
    cuda_quantize_rows,
    hopper_fp8_block,
    hopper_fp8_fused,
    hopper_fp8_once,
    hopper_fp8_rowwise,
    hopper_fp8_rowwise_once,
    hopper_w8a16_variants,
    marlin_w8a16,
    mma_fp8_block,
)
from kerneltable.ops.cuda_code import Instance, Product

Ask = Callable[[Sequence[Product], str, str], Iterable[Instance]]
"""What a module offers: see above."""

MODULES: Mapping[str, tuple[Ask, ...]] = MappingProxyType(
    {
        "hopper_fp8_block": (
            hopper_fp8_block.instances,
            hopper_fp8_fused.instances,
            hopper_fp8_once.instances,
            cuda_quantize.instances,
        ),
        "hopper_fp8_block_fixed": (hopper_fp8_block.fixed_instances, cuda_quantize.instances),
        "hopper_fp8_rowwise": (
            hopper_fp8_rowwise.instances,
            hopper_fp8_rowwise_once.instances,
            cuda_quantize_rows.instances,
        ),
        "hopper_w8a16": (hopper_w8a16_variants.instances,),
        "marlin_w8a16": (marlin_w8a16.instances, cuda_parts.instances),
        "mma_fp8_block": (mma_fp8_block.instances, cuda_parts.instances, cuda_quantize.instances),
        "deepgemm_fp8_block": (cuda_quantize.instances,),
        "sgl_deepgemm_fp8_block": (cuda_quantize.instances,),
        "flashinfer_fp8_block_sm90": (cuda_quantize.instances,),
        "flashinfer_mxfp8": (cuda_quantize.mx_instances,),
        "torch_scaled_mm_block": (cuda_quantize.instances,),
        "torch_scaled_mm_mxfp8": (cuda_quantize.mx_instances,),
        "torch_scaled_mm_rowwise": (cuda_quantize_rows.instances,),
        "torch_scaled_mm_tensorwise": (cuda_quantize_rows.instances,),
        "vllm_cutlass_fp8": (cuda_quantize_rows.instances,),
        "vllm_cutlass_fp8_block": (cuda_quantize.instances,),
    }
)
"""Kernel id -> the functions of the modules whose instances it launches."""

ROWS = tuple(sorted({rows for edge in range(15) for rows in (2**edge, 2**edge + 1)} | {96, 192, 384, 768}))
"""One m on each side of every edge at which an instance may change."""

TILES = tuple(sorted({*range(1, 17), *(int(17 * 1.09**step) for step in range(61)), 44, 77}))
"""n / 64: each up to 1024, then steps of 9 % up to 190,000; and those with which eight parts of k fill 84 and 148
multiprocessors to 84 %, five blocks on each."""

BLOCKS = (*range(1, 9), *range(10, 33, 2), 36, 40, 48, 56, 64, 80, 96, 128, 224, 512)
"""k / 128."""

MULTIPROCESSORS = (16, 84, 148)
"""Of devices whose own count is not known."""


def usual(multiprocessors: int | None = None) -> list[Product]:
    """Products on both sides of every edge at which the choice of an instance may change.

    multiprocessors   of the device; None: any
    """
    counts = MULTIPROCESSORS if multiprocessors is None else (multiprocessors,)
    sizes = product(ROWS, TILES, BLOCKS, counts)
    return [Product(m, 64 * tiles, 128 * blocks, units) for m, tiles, blocks, units in sizes]


def of_shapes(shapes: Iterable[tuple[int, int]], multiprocessors: int | None = None) -> list[Product]:
    """Products of any number of rows with weights of these (n, k)."""
    counts = range(8, 193) if multiprocessors is None else (multiprocessors,)
    return [Product(m, n, k, units) for (n, k), m, units in product(shapes, ROWS, counts)]


def instances(
    kernel: str, products: Sequence[Product], dtypes: Iterable[tuple[str, str]] = (("bf16", "bf16"),)
) -> list[Instance]:
    """Every instance that a kernel asks for, once; none for a kernel without device code in CUDA.

    dtypes    of input and output
    """
    found: dict[Instance, None] = {}
    for ask in MODULES.get(kernel, ()):
        for input, output in dtypes:
            found |= dict.fromkeys(ask(products, input, output))
    return sorted(found, key=lambda one: (one.file, one.defines))


def spread(found: Sequence[Instance], most: int) -> list[Instance]:
    """At most `most` instances of each file, evenly over all: enough to see whether the code compiles for a chip."""
    files = {one.file: [other for other in found if other.file == one.file] for one in found}
    return [one for every in files.values() for one in every[:: ceil(len(every) / most)]]
