"""The Triton quantizers give the bytes that a numpy statement of the rule gives. Run by test_triton_ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops import triton_quantize as quantize
from kerneltable.ops.triton_chip import chip_of
from ops.triton_fixtures import DEVICE, E4M3, FEATURES, FLOATS, INTERPRETED, bits, in_gap, poison

__all__ = ["poison"]
CHIP = chip_of(DEVICE, FEATURES)


def value_of(code: int) -> float:
    """The number that an e4m3 code other than NaN stands for."""
    exponent, mantissa = code >> 3 & 15, code & 7
    size = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -size if code >> 7 else size


CODES = np.array([value_of(code) for code in range(256)])


def stated_codes(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """e4m3 codes of clamp(values / scale, -448, 448), to nearest, ties to even, written with a search in the table."""
    with np.errstate(all="ignore"):
        ratio = (values / scale).astype(np.float32)
    clamped = np.clip(ratio, -448, 448)
    positive = CODES[:0x7F]
    size = np.abs(clamped)
    above = np.clip(np.searchsorted(positive, np.nan_to_num(size)), 1, 0x7E)
    low, high = positive[above - 1], positive[above]
    upper = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    code = np.where(upper, above, above - 1) | (np.signbit(ratio) * 0x80)
    return np.where(np.isnan(ratio), 0x7F, code).astype(np.uint8)


def stated_scale(values: np.ndarray, axis: int | None) -> np.ndarray:
    amax = np.abs(values).max(axis=axis, keepdims=True)  # numpy's max propagates NaN
    scale = amax / np.float32(448)
    return np.where(scale < np.float32(2.0**-126), np.float32(2.0**-126), scale).astype(np.float32)


def stated_blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [values[:, first : first + 128] for first in range(0, values.shape[1], 128)]
    scales = [stated_scale(part, 1) for part in parts]
    codes = [stated_codes(part, scale) for part, scale in zip(parts, scales, strict=True)]
    return np.concatenate(codes, 1), np.concatenate(scales, 1)


def wide(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.float32).cpu().numpy()


def same(found: torch.Tensor, stated: np.ndarray) -> bool:
    if found.dtype == E4M3:
        return np.array_equal(found.view(torch.uint8).cpu().numpy(), stated)
    return np.array_equal(found.cpu().numpy().reshape(-1), stated.astype(np.float32).reshape(-1), equal_nan=True)


def hard_rows(k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that hold what goes wrong: zeros, tiny, outlier, ties, NaN, infinities, a power of two less one ulp."""
    generator = torch.Generator().manual_seed(k)
    rows = torch.randn(11, k, generator=generator)
    rows[1] = 0
    # The interpreter (3.6 to 3.9) widens subnormal bf16 numbers wrongly; float32 covers them there, the GPU both.
    rows[2] = (
        rows[2].sign() * (1 + rows[2].abs()) * 1e-36 if INTERPRETED and dtype == torch.bfloat16 else rows[2] * 1e-38
    )
    rows[3, 0] = 1e30
    rows[4] = torch.arange(k) % 31 / 16  # half of these lie between two codes once 448 is in the group
    rows[4, k // 2] = 448
    rows[5, k - 1] = float("nan")
    rows[6, 0] = float("inf")
    rows[7, k // 3] = -float("inf")
    rows[8] = torch.tensor(2.0**6).nextafter(torch.tensor(0.0))
    rows[9] = -0.0
    rows[10] = 3.4e38 if dtype != torch.float16 else 65504.0
    return rows.to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 16, 17, 128, 130, 640])
def test_the_block_quantizer_gives_the_stated_bytes(k: int, dtype: torch.dtype) -> None:
    x = hard_rows(k, dtype)
    codes, scales = quantize.quantize_block(x, CHIP)
    stated, stated_scales = stated_blocks(wide(x))
    assert same(codes, stated)
    assert same(scales, stated_scales)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 17, 640, 4100])
def test_the_token_quantizer_gives_the_stated_bytes(k: int, dtype: torch.dtype) -> None:
    x = hard_rows(k, dtype)
    codes, scales = quantize.quantize_token(x, None, CHIP)
    scale = stated_scale(wide(x), 1)
    assert same(scales, scale)
    assert same(codes, stated_codes(wide(x), scale))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", range(11))
def test_the_tensor_quantizer_gives_the_stated_bytes(row: int, dtype: torch.dtype) -> None:
    x = hard_rows(130, dtype)[[0, row]]
    codes, scale = quantize.quantize_tensor(x, None, CHIP)
    stated = stated_scale(wide(x), None)
    assert same(scale, stated)
    assert same(codes, stated_codes(wide(x), stated))


@pytest.mark.parametrize("m", [1, 2, 7, 17, 129])
def test_any_number_of_rows_is_quantized(m: int) -> None:
    x = torch.randn(m, 200, generator=torch.Generator().manual_seed(m)).to(DEVICE)
    assert same(quantize.quantize_block(x, CHIP)[0], stated_blocks(wide(x))[0])
    scale = stated_scale(wide(x), None)
    assert same(quantize.quantize_tensor(x, None, CHIP)[0], stated_codes(wide(x), scale))


def test_a_static_scale_is_used_as_given_and_what_exceeds_it_is_clamped() -> None:
    x = torch.tensor([[1.0, -500.0, 0.3, float("nan"), float("inf"), -0.0, 2.0**-10, 3e-3]]).to(DEVICE)
    scale = torch.tensor([0.7], device=DEVICE)
    codes, returned = quantize.quantize_static(x, scale, CHIP)
    assert same(codes, stated_codes(wide(x), np.float32(0.7)))
    assert codes.view(torch.uint8)[0, 1] == 0xFE
    assert returned is scale


@pytest.mark.parametrize("limit", [0.001, 1.0])
def test_the_upper_bound_of_a_dynamic_scale_holds_only_where_it_is_smaller(limit: float) -> None:
    x = hard_rows(64, torch.float32)[:5]
    upper = torch.tensor([limit], device=DEVICE)
    scale = np.minimum(stated_scale(wide(x), 1), np.float32(limit))
    codes, scales = quantize.quantize_token(x, upper, CHIP)
    assert same(scales, scale)
    assert same(codes, stated_codes(wide(x), scale))
    scale = np.minimum(stated_scale(wide(x), None), np.float32(limit))
    codes, scales = quantize.quantize_tensor(x, upper, CHIP)
    assert same(scales, scale)
    assert same(codes, stated_codes(wide(x), scale))


def test_every_code_and_every_tie_between_codes_rounds_to_the_even_code() -> None:
    codes = CODES[:0x7F]
    between = (codes[1:] + codes[:-1]) / 2
    values = np.concatenate([codes, between, np.nextafter(between.astype(np.float32), np.float32(1e9))])
    x = torch.tensor(np.concatenate([values, -values]), dtype=torch.float32).reshape(1, -1).to(DEVICE)
    one = torch.ones(1, device=DEVICE)
    assert same(quantize.quantize_static(x, one, CHIP)[0], stated_codes(wide(x), np.float32(1)))


def test_rows_with_gaps_and_broken_alignment_give_the_bytes_of_contiguous_rows() -> None:
    x = torch.randn(7, 130, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(DEVICE)
    for shifted in (in_gap(x), in_gap(x, 9), in_gap(torch.cat([x[:, :1], x], 1))[:, 1:]):
        for found, wanted in zip(quantize.quantize_block(shifted, CHIP), quantize.quantize_block(x, CHIP), strict=True):
            assert torch.equal(bits(found), bits(wanted))
        assert torch.equal(
            bits(quantize.quantize_token(shifted, None, CHIP)[0]), bits(quantize.quantize_token(x, None, CHIP)[0])
        )
        assert torch.equal(
            bits(quantize.quantize_tensor(shifted, None, CHIP)[0]), bits(quantize.quantize_tensor(x, None, CHIP)[0])
        )


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4),
        torch.zeros(0, 4),
        torch.zeros(2, 4, dtype=torch.float64),
        torch.zeros(4, 2).t(),
        torch.zeros(2, 4, dtype=torch.int8),
    ],
)
def test_what_is_not_a_float_matrix_with_contiguous_columns_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(KernelInputError, match="quantizer: wanted"):
        quantize.quantize_block(x.to(DEVICE), CHIP)
