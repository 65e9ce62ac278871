"""oneDNN's FP8 product on Intel GPUs, `_xpu_C::fp8_gemm` of vllm-xpu-kernels: weight as a [k, n] view.

Source of the calling convention: vllm-xpu-kernels 0.1 (Apache-2.0), csrc/xpu/torch_bindings.cpp and its own tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kerneltable.ops.installed import library_op

NAMES = ("_xpu_C::fp8_gemm",)
ARGUMENTS = ("A", "B", "out_dtype", "A_scale_", "B_scale_", "bias_")


def find_op() -> Any:
    """The op; KernelUnavailable when it is not registered."""
    return library_op(NAMES, ARGUMENTS, "vllm_xpu_kernels")


def pack_block_scale(scale: torch.Tensor, n: int, block_rows: int) -> torch.Tensor:
    """Block scales as oneDNN reads them: transposed, contiguous, one column for each group of rows.

    scale       [ceil(n / block_rows), k / 128] f32
    n           rows of the weight, a multiple of 16; a ragged last block becomes groups of gcd(n, block_rows) rows
    returns     [k / 128, n / group] f32, contiguous
    """
    group = math.gcd(n, block_rows)
    first_rows = torch.arange(n // group, device=scale.device) * group
    return scale.index_select(0, first_rows // block_rows).t().contiguous()


def product(
    op: Any,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Product of quantized inputs with a quantized weight.

    codes, weight  [m, k] and [n, k] e4m3, contiguous
    scales         f32: [1], [m, 1] or [m, k / 128], contiguous
    weight_scale   f32: [1], [n] or [k / 128, n / group], contiguous
    dtype          bf16 or f16
    returns        [m, n] dtype
    """
    out: torch.Tensor = op(codes, weight.t(), dtype, scales, weight_scale, None)
    return out
