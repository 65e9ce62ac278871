"""torch.nn.functional.scaled_mm with the layouts that each recipe wants. Full-precision accumulation throughout.

The layouts follow torch's own checks (ScaledBlas.cpp) and cuBLAS, "1D and 128x128 2D block scaling for FP8 data types"
and "1D block scaling factors layout". `scaled_mm` is a parameter so that the arguments can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import ScalingType, SwizzleType
from torch.nn.functional import scaled_mm as torch_scaled_mm

ScaledMM = Callable[..., torch.Tensor]

BLOCK = 128
ROWS_MULTIPLE = 4
"""cuBLASLt refuses 1x128 scales for a number of rows that is not a multiple of 4 (CUBLAS_STATUS_NOT_SUPPORTED)."""

BLOCK_SCALES_MULTIPLE = 4
"""128x128 scales are read in runs of 4 along k; an unpadded one gives wrong numbers, not an error, at k = 640."""


def pack_block_scale(scale: torch.Tensor) -> torch.Tensor:
    """128x128 weight scales as cuBLASLt reads them.

    scale    [ceil(n / 128), ceil(k / 128)] f32
    returns  [L, ceil(n / 128)] f32 with strides (1, L), L = ceil(k / 128) rounded up to a multiple of 4; padding is 0
    """
    padded = torch.nn.functional.pad(scale, (0, -scale.shape[1] % BLOCK_SCALES_MULTIPLE))
    return padded.contiguous().t()


def pad_rows(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and 1x128 scales with rows of zeros (scale 1) up to a multiple of 4, scales laid out column by column.

    codes    [m, k] e4m3, contiguous
    scales   [m, k / 128] f32
    returns  [M, k] e4m3 and [M, k / 128] f32 with strides (1, M), M = m rounded up to a multiple of 4
    """
    short = -codes.shape[0] % ROWS_MULTIPLE
    if not short and scales.stride() == (1, codes.shape[0]):
        return codes, scales
    if short:
        rows = torch.nn.functional.pad(codes.view(torch.uint8), (0, 0, 0, short))
        codes = rows.view(codes.dtype)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, short), value=1.0)
    return codes, scales.t().contiguous().t()


def block_product(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    packed_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    scaled_mm: ScaledMM = torch_scaled_mm,
) -> torch.Tensor:
    """Product of 1x128-scaled inputs with 128x128-scaled weights.

    codes         [m, k] e4m3, contiguous; k a multiple of 128
    scales        [m, k / 128] f32
    weight        [n, k] e4m3, contiguous; n a multiple of 16
    packed_scale  what pack_block_scale made
    returns       [m, n] dtype (bf16, f16 or f32), contiguous
    """
    m = codes.shape[0]
    codes, scales = pad_rows(codes, scales)
    out = scaled_mm(
        codes,
        weight.t(),
        scales,
        ScalingType.BlockWise1x128,
        packed_scale,
        ScalingType.BlockWise128x128,
        output_dtype=dtype,
        use_fast_accum=False,
    )
    return out[:m]


def tensor_product(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    scaled_mm: ScaledMM = torch_scaled_mm,
) -> torch.Tensor:
    """Product with one scale for each operand.

    codes, weight        [m, k] and [n, k] e4m3, contiguous; n and k multiples of 16
    scale, weight_scale  [] f32, on the same device
    returns              [m, n] dtype (bf16, f16 or f32)
    """
    return scaled_mm(
        codes,
        weight.t(),
        scale,
        ScalingType.TensorWise,
        weight_scale,
        ScalingType.TensorWise,
        output_dtype=dtype,
        use_fast_accum=False,
    )


def row_product(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    scaled_mm: ScaledMM = torch_scaled_mm,
) -> torch.Tensor:
    """Product with one scale a row of x and one a row of the weight.

    codes, weight  [m, k] and [n, k] e4m3, contiguous; n and k multiples of 16
    scales         [m, 1] f32
    weight_scale   [1, n] f32
    returns        [m, n] dtype: bf16 and f16 everywhere on CUDA, f32 on SM90, bf16 alone on ROCm
    """
    return scaled_mm(
        codes,
        weight.t(),
        scales,
        ScalingType.RowWise,
        weight_scale,
        ScalingType.RowWise,
        output_dtype=dtype,
        use_fast_accum=False,
    )


def swizzle_mx_scale(exponents: torch.Tensor) -> torch.Tensor:
    """e8m0 scales in the order of the matrix units: tiles of 128 rows by 4 columns, 512 bytes each.

    exponents  [rows, columns] uint8 holding e8m0, or float8_e8m0fnu
    returns    one dimension, float8_e8m0fnu, rows padded to 128 and columns to 4; in a tile, row r and column c lie at
               byte (r % 32) * 16 + (r // 32) * 4 + c; padding is code 0
    """
    rows, columns = exponents.shape
    codes = torch.nn.functional.pad(exponents.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    tiles = codes.reshape(codes.shape[0] // 128, 4, 32, codes.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().view(-1).view(torch.float8_e8m0fnu)


def mx_product(
    codes: torch.Tensor,
    swizzled: torch.Tensor,
    weight: torch.Tensor,
    weight_swizzled: torch.Tensor,
    dtype: torch.dtype,
    *,
    scaled_mm: ScaledMM = torch_scaled_mm,
) -> torch.Tensor:
    """Product of two MXFP8 operands.

    codes, weight              [m, k] and [n, k] e4m3, contiguous; n a multiple of 16, k of 32
    swizzled, weight_swizzled  what swizzle_mx_scale made of their [rows, k / 32] exponents
    returns                    [m, n] dtype (bf16 or f32)
    """
    return scaled_mm(
        codes,
        weight.t(),
        swizzled,
        ScalingType.BlockWise1x32,
        weight_swizzled,
        ScalingType.BlockWise1x32,
        swizzle_a=SwizzleType.SWIZZLE_32_4_4,
        swizzle_b=SwizzleType.SWIZZLE_32_4_4,
        output_dtype=dtype,
        use_fast_accum=False,
    )
