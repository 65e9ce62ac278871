"""The OCP MX quantizer: e4m3 codes, 32 along k sharing one power of two. Exponents come from bits, never log2."""

from __future__ import annotations

import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_fp8 import LARGEST, grouped, round_to_e4m3, widen_e8m0

MX_BLOCK = 32
E4M3_LARGEST_EXPONENT = 8
NAN_EXPONENT = 0xFF
MODES = ("floor", "rceil")


def quantize_mx(x: torch.Tensor, mode: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row in groups of 32 columns to e4m3 with an e8m0 scale; the last group may be short.

    x        [m, k] bf16, f16 or f32, any strides
    mode     floor: the exponent of amax, less 8 (OCP MX v1.0, section 6.3; larger values saturate);
             rceil: amax / 448 rounded up to a power of two (nothing saturates)
    returns  codes [m, k] e4m3 and exponents [m, ceil(k / 32)] uint8 holding e8m0, both contiguous.
             A group with NaN or infinity has exponent 0xff and NaN codes; a group of zeros has exponent 0
    errors   KernelInputError for an unknown mode or an x that is not a floating-point matrix
    """
    if mode not in MODES:
        raise KernelInputError(f"mode: must be one of {', '.join(MODES)}; found {mode!r}")
    if x.dim() != 2 or not x.is_floating_point():
        raise KernelInputError(f"x: must be a floating-point matrix [m, k]; found {list(x.shape)} {x.dtype}")
    m, k = x.shape
    groups = grouped(x, MX_BLOCK)
    amax = groups.abs().amax(dim=2)
    if mode == "floor":
        exponents = _floor_exponent(amax)
    else:  # the divisor is a tensor: on CUDA torch multiplies by the reciprocal of a number
        exponents = _rounded_up_exponent(amax / torch.full_like(amax, LARGEST))
    inverse = widen_e8m0((254 - exponents).clamp(min=0).to(torch.uint8))
    inverse = torch.where(exponents == NAN_EXPONENT, torch.nan, inverse)
    codes = round_to_e4m3(groups * inverse.unsqueeze(2)).reshape(m, -1)
    return codes[:, :k].contiguous(), exponents.to(torch.uint8)


def _floor_exponent(amax: torch.Tensor) -> torch.Tensor:
    """e8m0 code of floor(log2(amax)) - 8 as int32, at least 0; 0xff for NaN and infinity. amax is f32, not negative."""
    biased = amax.view(torch.int32) >> 23
    return torch.where(biased == 0xFF, NAN_EXPONENT, (biased - E4M3_LARGEST_EXPONENT).clamp(min=0))


def _rounded_up_exponent(value: torch.Tensor) -> torch.Tensor:
    """e8m0 code of the least power of two not below value, as int32; 0xff for NaN, infinity and beyond 2^127.

    value is f32, not negative; up to 2^-127, the smallest e8m0, it gives code 0.
    """
    bits = value.view(torch.int32)
    biased, fraction = bits >> 23, bits & 0x7F_FFFF
    up = torch.where(biased == 0, fraction > 0x40_0000, fraction > 0)
    return torch.where(biased == 0xFF, NAN_EXPONENT, biased + up.to(torch.int32))
