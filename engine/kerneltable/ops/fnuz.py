"""e4m3fn codes as e4m3fnuz codes, the FP8 of CDNA3 chips: the same number for twice the scale, exactly."""

from __future__ import annotations

import torch

from kerneltable.errors import KernelInputError

NEGATIVE_ZERO = 0x80
FNUZ_NAN = 0x80
NAN_CODE = 0x7F


def to_fnuz(codes: torch.Tensor) -> torch.Tensor:
    """Codes whose numbers are half of the given ones; multiply their scale by 2.

    codes    float8_e4m3fn, any shape
    returns  float8_e4m3fnuz, same shape. The exponent bias is 8, not 7, so that equal bits are half the number; -0
             (0x80, which fnuz reads as NaN) becomes 0, and NaN of either sign becomes 0x80. No number is rounded:
             the largest, 448, is 224 of at most 240
    errors   KernelInputError for another dtype
    source   AMD CDNA3 ISA, "FP8 formats"; OCP 8-bit floating point r1.0
    """
    if codes.dtype != torch.float8_e4m3fn:
        raise KernelInputError(f"codes: must be float8_e4m3fn; found {codes.dtype}; convert them once only")
    bits = codes.view(torch.uint8)
    is_nan = (bits & NAN_CODE) == NAN_CODE
    plain = torch.where(bits == NEGATIVE_ZERO, 0, bits)
    return torch.where(is_nan, FNUZ_NAN, plain).to(torch.uint8).view(torch.float8_e4m3fnuz)
