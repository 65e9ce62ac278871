"""Products that keep float32 precision whatever the process allows: no TF32, no bf16 passes, no 16-bit sums."""

from __future__ import annotations

import torch


def product_f32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T in float32 precision.

    a, b     [m, k] and [n, k] float32
    returns  [m, n] float32; where the process allows float32 products with fewer bits (TF32, bf16) the product is made
             in float64 and rounded, because that setting is global and not ours to change
    """
    if keeps_float32(a.device):
        return torch.mm(a, b.t())
    return torch.mm(a.to(torch.float64), b.t().to(torch.float64)).to(torch.float32)


def product_16_to_f32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T of two 16-bit matrices with float32 sums and a float32 result.

    a, b     [m, k] and [n, k], both bf16 or both f16
    returns  [m, n] float32; on CUDA by the matrix units, elsewhere by widening both (exact) to float32
    """
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b.t(), out_dtype=torch.float32)
    return product_f32(a.to(torch.float32), b.to(torch.float32))


def keeps_float32(device: torch.device) -> bool:
    """Whether torch.mm of float32 matrices on this device keeps 24 significant bits under the present settings."""
    library = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(library, "matmul", None), "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() == "highest"
    return precision in ("none", "ieee")


def finish(accumulated: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Add the bias in float32, then round once.

    accumulated  [m, n] float32
    bias         [n] any float dtype, or None
    returns      [m, n] dtype
    """
    if bias is not None:
        accumulated = accumulated + bias.to(torch.float32)
    return accumulated.to(dtype)
