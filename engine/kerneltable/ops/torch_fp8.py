"""FP8 quantizers of a layer's input and the widening of scales, in plain torch, on any device.

Every kernel that quantizes must give the bytes that these functions give. Casts to e4m3 differ between torch versions
above 448 (NaN up to 2.11, saturated from 2.13 on), so values are clamped first; NaN stays NaN and is written as 0x7f.
"""

from __future__ import annotations

import torch

from kerneltable.errors import KernelInputError
from kerneltable.formats import FORMATS

E4M3 = torch.float8_e4m3fn
LARGEST = FORMATS["e4m3"].largest
SMALLEST_SCALE = 2.0**-126
"""The least scale a dynamic quantizer gives: the smallest normal float32, so no scale is zero or subnormal."""

NAN_CODE = 0x7F


def widen_scale(scale: torch.Tensor) -> torch.Tensor:
    """A scale tensor of any stored format as float32, exactly.

    scale    float32, bfloat16, float8_e8m0fnu, or uint8 holding e8m0 (never read as a number); any shape
    returns  float32, same shape; e8m0 code c is 2^(c - 127) and 0xff is NaN
    errors   KernelInputError for any other dtype
    source   OCP microscaling formats v1.0, section 5.4.1
    """
    if scale.dtype in (torch.float32, torch.bfloat16):
        return scale.to(torch.float32)
    if scale.dtype in (torch.float8_e8m0fnu, torch.uint8):
        return widen_e8m0(scale)
    raise KernelInputError(
        f"scale: dtype must be float32, bfloat16, float8_e8m0fnu or uint8 holding e8m0; found {scale.dtype}; "
        "convert the scale before the layer is made"
    )


def widen_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """e8m0 codes as float32 powers of two, made from bits.

    codes    float8_e8m0fnu or uint8, any shape
    returns  float32, same shape; code 0 is the subnormal 2^-127, 0xff is NaN
    """
    exponent = codes.view(torch.uint8).to(torch.int32)
    bits = exponent << 23
    bits = torch.where(exponent == 0, 0x0040_0000, bits)
    return torch.where(exponent == 0xFF, 0x7FC0_0000, bits).to(torch.int32).view(torch.float32)


def round_to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Round float32 values to e4m3, to nearest even, clamped to +-448; NaN of either sign becomes 0x7f.

    x        float32, any shape
    returns  float8_e4m3fn, same shape
    source   OCP 8-bit floating point r1.0: the largest e4m3 is 448, NaN is S.1111.111
    """
    codes = x.clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8)
    return torch.where(x.isnan(), NAN_CODE, codes).to(torch.uint8).view(E4M3)


def has_nan_codes(codes: torch.Tensor) -> bool:
    """Whether e4m3 codes [n, k] hold NaN (0x7f or 0xff); waits for the device, looks at 64 MiB at a time."""
    step = max(1, 2**26 // max(1, codes.shape[1]))
    parts = torch.split(codes.view(torch.uint8), step)
    return any(bool(((part & 0x7F) == NAN_CODE).any()) for part in parts)


def quantize_block(x: torch.Tensor, block: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row in groups of `block` columns; the last group may be short.

    x        [m, k] bf16, f16 or f32, any strides
    returns  codes [m, k] e4m3 and scales [m, ceil(k / block)] f32, both contiguous; x is about codes * scales.
             A group's scale is max(amax / 448, 2^-126). A NaN in a group makes the group NaN; an infinity makes its
             scale infinite, its finite values 0 and its infinities NaN
    errors   KernelInputError if x is not a floating-point matrix
    """
    m, k = _matrix(x)
    groups = grouped(x, block)
    scales = _dynamic_scale(groups.abs().amax(dim=2), None)
    codes = round_to_e4m3(groups / scales.unsqueeze(2)).reshape(m, -1)
    return codes[:, :k].contiguous(), scales


def quantize_token(x: torch.Tensor, upper: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row with one scale.

    x        [m, k] bf16, f16 or f32, any strides; k at least 1
    upper    [] or [1] f32, the largest scale allowed (values beyond 448 of them are clamped), or None
    returns  codes [m, k] e4m3 and scales [m, 1] f32, both contiguous
    errors   KernelInputError if x is not a floating-point matrix
    """
    _matrix(x)
    wide = x.to(torch.float32)
    scales = _dynamic_scale(wide.abs().amax(dim=1, keepdim=True), upper)
    return round_to_e4m3(wide / scales).contiguous(), scales


def quantize_tensor(x: torch.Tensor, upper: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize all of x with one scale taken from its own largest magnitude.

    x        [m, k] bf16, f16 or f32, any strides, not empty
    upper    [] or [1] f32, the largest scale allowed, or None
    returns  codes [m, k] e4m3, contiguous, and the scale [] f32
    errors   KernelInputError if x is not a floating-point matrix
    """
    _matrix(x)
    wide = x.to(torch.float32)
    scale = _dynamic_scale(wide.abs().amax(), upper)
    return round_to_e4m3(wide / scale).contiguous(), scale


def quantize_static(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize all of x with the scale that the checkpoint gives.

    x        [m, k] bf16, f16 or f32, any strides
    scale    [] or [1], any stored scale format
    returns  codes [m, k] e4m3, contiguous, and the scale [] f32
    errors   KernelInputError if x is not a floating-point matrix or scale not one number
    """
    _matrix(x)
    one = _one_number(scale, "input_scale").to(x.device)
    return round_to_e4m3(x.to(torch.float32) / one).contiguous(), one


def grouped(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [m, k] as float32 [m, ceil(k / block), block], the last group filled up with zeros."""
    m, k = x.shape
    wide = x.to(torch.float32)
    short = -k % block
    if short:
        wide = torch.nn.functional.pad(wide, (0, short))
    return wide.reshape(m, (k + short) // block, block)


def _dynamic_scale(amax: torch.Tensor, upper: torch.Tensor | None) -> torch.Tensor:
    """max(amax / 448, 2^-126), at most upper; NaN stays NaN.

    The divisor is a tensor: on CUDA torch multiplies by the reciprocal of a number, which is not an IEEE division.
    """
    scale = (amax / torch.full_like(amax, LARGEST)).clamp(min=SMALLEST_SCALE)
    return scale if upper is None else torch.minimum(scale, _one_number(upper, "input_scale_ub"))


def _one_number(scale: torch.Tensor, name: str) -> torch.Tensor:
    if scale.numel() != 1:
        raise KernelInputError(f"{name}: must hold one number, shaped [] or [1]; found {list(scale.shape)}")
    return widen_scale(scale).reshape(())


def _matrix(x: torch.Tensor) -> tuple[int, int]:
    if x.dim() != 2 or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise KernelInputError(
            f"x: must be a matrix [m, k] of bf16, f16 or f32; found {list(x.shape)} {x.dtype}; "
            "flatten leading dimensions and convert it first"
        )
    return x.shape[0], x.shape[1]
