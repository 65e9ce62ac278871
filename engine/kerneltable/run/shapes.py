"""Sizes that the field tests its kernels at, and the edges of a row of our own table."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.model import Kernel, MultipleOf, Range

Shape = tuple[int, int, int]

DEEPGEMM_M = (1, 128, 4096)
DEEPGEMM_NK = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
VLLM_BLOCK_M = (1, 7, 8, 83, 4096)
VLLM_BLOCK_N = (128, 512, 576, 7168, 13824)
VLLM_BLOCK_K = (256, 3884, 4096, 13824, 16384)
MARLIN_NK = ((200, 288), (256, 208), (200, 208), (4640, 512), (64, 128), (128, 64), (256, 256), (4608, 4096))
SMALL_M = (1, 16, 17, 32, 64, 127)
FUZZ_M = (1, 2, 3, 7, 8, 16, 17, 48, 63, 64, 127, 128, 129, 256, 257, 512, 1024, 3072, 4096)
FUZZ_N = (16, 32, 64, 80, 128, 256, 512, 1024)
FUZZ_K = (16, 32, 64, 128, 256, 512, 1024, 2688)


def field_shapes() -> Iterator[Shape]:
    """(m, n, k) of the tests of DeepGEMM, vLLM (block FP8, Marlin padding) and FlashInfer (unified fuzz), each once.

    Every n of a suite meets every k, and m goes round, so that each value occurs without all the products.
    source    DeepGEMM 54e22612 tests/generators.py; vLLM 01065c02 test_block_fp8.py, test_marlin_tile_padding.py;
              vLLM 27ac2134 test_mxfp8_bf16_fallback.py (m); FlashInfer fb28d724 tests/gemm/test_unified_gemm_fuzz.py
    """
    seen: set[Shape] = set()
    for shape in _all_shapes():
        if shape not in seen:
            seen.add(shape)
            yield shape


def _all_shapes() -> Iterator[Shape]:
    for n, k in DEEPGEMM_NK:
        yield from ((m, n, k) for m in DEEPGEMM_M)
    for i, n in enumerate(VLLM_BLOCK_N):
        for j, k in enumerate(VLLM_BLOCK_K):
            yield VLLM_BLOCK_M[(i + j) % len(VLLM_BLOCK_M)], n, k
    for i, (n, k) in enumerate(MARLIN_NK):
        yield SMALL_M[i % len(SMALL_M)], n, k
    for i, m in enumerate(FUZZ_M):
        yield m, FUZZ_N[i % len(FUZZ_N)], FUZZ_K[3 * i % len(FUZZ_K)]
    for n in (FUZZ_N[0], FUZZ_N[-1]):
        yield from ((m, n, k) for m in (FUZZ_M[0], FUZZ_M[-1]) for k in (FUZZ_K[0], FUZZ_K[-1]))


def row_edges(kernel: Kernel) -> tuple[Shape, ...]:
    """The smallest sizes that the row accepts, and one step above them."""
    n, k = smallest(kernel, "n"), smallest(kernel, "k")
    return (
        (1, n, k),
        (2, n + step(kernel, "n"), k),
        (3, n, k + step(kernel, "k")),
        (17, 3 * n + step(kernel, "n"), 5 * k + step(kernel, "k")),
    )


def smallest(kernel: Kernel, dimension: str) -> int:
    """The least n, k or m of at least 1 that the row accepts."""
    key = f"accepts.{dimension}.min"
    least = [p.minimum for p in kernel.accepts if isinstance(p, Range) and p.key == key and isinstance(p.minimum, int)]
    multiple = step(kernel, dimension)
    return -(-max([1, *least]) // multiple) * multiple


def step(kernel: Kernel, dimension: str) -> int:
    """What n, k or m must be a multiple of in this row."""
    key = f"accepts.{dimension}.multiple_of"
    return next((p.divisor for p in kernel.accepts if isinstance(p, MultipleOf) and p.key == key), 1)
