"""CUTLASS products of an installed vLLM, `_C::cutlass_scaled_mm`: one scale a tensor, a row or a 128x128 block.

The layouts are those of the op's own checks (scaled_mm_entry.cu): row-major a and out, column-major b, n and k
multiples of 16; scales of rows contiguous, scales of blocks with their rows next to each other.
"""

from __future__ import annotations

from typing import Any

import torch

from kerneltable.ops.installed import library_op

NAMES = ("_C::cutlass_scaled_mm",)
ARGUMENTS = ("out", "a", "b", "a_scales", "b_scales", "bias")


def find_op() -> Any:
    """The op; KernelUnavailable when no vLLM registers it."""
    return library_op(NAMES, ARGUMENTS, "vllm")


def rows_together(scales: torch.Tensor) -> torch.Tensor:
    """The same [m, groups] matrix with stride 1 along m."""
    return scales.t().contiguous().t()


def product(
    op: Any,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Product of quantized inputs with a quantized weight.

    codes, weight  [m, k] and [n, k] e4m3, contiguous; n and k multiples of 16
    scales         f32: [1], [m, 1], or [m, k / 128] with stride 1 along m
    weight_scale   f32: [1], [n, 1], or [k / 128, n / 128] with stride 1 along k
    dtype          bf16 or f16
    returns        [m, n] dtype, contiguous
    """
    out = torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device)
    op(out, codes, weight.t(), scales, weight_scale, None)
    return out
