"""FP8 quantizers, byte by byte, against an independent statement: IEEE division in numpy, nearest code by table."""

from __future__ import annotations

import bisect
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltable.errors import KernelInputError
from kerneltable.ops import torch_fp8 as fp8

DATA = Path(__file__).parents[1] / "data"
TABLES = json.loads((DATA / "fp8_code_tables.json").read_text())
POSITIVE = [float.fromhex(text) for text in TABLES["float8_e4m3fn"][:0x7F]]


def nearest_code(value: float) -> int:
    """The e4m3 code nearest to value, ties to the even code, clamped; found by search in the table."""
    if np.isnan(value):
        return 0x7F
    magnitude = min(abs(value), 448.0)
    high = bisect.bisect_left(POSITIVE, magnitude)
    low = max(high - 1, 0)
    down, up = magnitude - POSITIVE[low], POSITIVE[high] - magnitude
    code = low if down < up or (down == up and low % 2 == 0) else high
    return code | (0x80 if np.signbit(value) else 0)


def stated(x: np.ndarray, scale: np.float32) -> list[int]:
    """Codes of a group with this scale, as the semantics state them."""
    with np.errstate(all="ignore"):
        return [nearest_code(float(np.float32(value) / scale)) for value in x]


def stated_scale(x: np.ndarray) -> np.float32:
    with np.errstate(all="ignore"):
        amax = np.max(np.abs(x.astype(np.float32)))
        return np.float32(np.maximum(amax / np.float32(448), np.float32(2.0**-126)))


def codes_of(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.uint8).flatten().tolist()


def assert_group_is_as_stated(x: torch.Tensor) -> None:
    codes, scales = fp8.quantize_block(x.reshape(1, -1), x.numel())
    values = x.to(torch.float32).numpy()
    scale = stated_scale(values)
    assert np.float32(scales.item()).tobytes() == scale.tobytes() or (np.isnan(scale) and scales.isnan().all())
    assert codes_of(codes) == stated(values, scale)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e8m0fnu"])
def test_all_256_codes_widen_to_the_table(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    wide = codes.view(torch.float8_e4m3fn).to(torch.float32) if name == "float8_e4m3fn" else fp8.widen_e8m0(codes)
    for code, text in enumerate(TABLES[name]):
        value = wide[code].item()
        assert np.isnan(value) if text == "nan" else value == float.fromhex(text), hex(code)


@pytest.mark.parametrize("name", ["max_normal", "min_normal", "max_subnormal", "min_subnormal"])
def test_special_numbers_round_to_their_codes(name: str) -> None:
    code, value = json.loads((DATA / "fp8_special_numbers.json").read_text())["float8_e4m3fn"][name]
    assert codes_of(fp8.round_to_e4m3(torch.tensor([value, -value]))) == [int(code, 16), int(code, 16) | 0x80]


def test_every_code_rounds_to_itself() -> None:
    finite = torch.tensor(POSITIVE)
    assert codes_of(fp8.round_to_e4m3(finite)) == list(range(0x7F))


def test_halfway_values_round_to_even() -> None:
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(POSITIVE)])
    assert codes_of(fp8.round_to_e4m3(middles)) == [code if code % 2 == 0 else code + 1 for code in range(0x7E)]


@pytest.mark.parametrize("value", [448.0, 464.0, 465.0, 480.0, 1e4, 3e38, float("inf")])
def test_values_beyond_the_largest_are_clamped_on_every_torch(value: float) -> None:
    assert codes_of(fp8.round_to_e4m3(torch.tensor([value, -value]))) == [0x7E, 0xFE]


def test_nan_of_either_sign_is_7f() -> None:
    negative = torch.tensor([-0x40_0000], dtype=torch.int32).view(torch.float32)
    assert negative.isnan().all()
    assert codes_of(fp8.round_to_e4m3(torch.cat([torch.tensor([torch.nan]), negative]))) == [0x7F, 0x7F]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_random_groups_are_as_stated(dtype: torch.dtype) -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for row in x:
        assert_group_is_as_stated(row)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=24))
def test_any_float32_group_is_as_stated(values: list[float]) -> None:
    assert_group_is_as_stated(torch.tensor(values, dtype=torch.float32))


@pytest.mark.parametrize(
    "amax", [float.fromhex("0x1.fffffep+7"), float.fromhex("0x1.fffffep-1"), 1e-38, 2.0**-149, 3.4028234663852886e38]
)
def test_extreme_largest_magnitudes_are_as_stated(amax: float) -> None:
    assert_group_is_as_stated(torch.tensor([amax, -amax / 2, amax / 3, amax / 1000, 0.0], dtype=torch.float32))


def test_a_group_of_zeros_has_the_least_scale_and_zero_codes() -> None:
    codes, scales = fp8.quantize_block(torch.zeros(2, 128, dtype=torch.bfloat16))
    assert codes_of(codes) == [0] * 256
    assert scales.tolist() == [[2.0**-126], [2.0**-126]]


def test_nan_spoils_its_group_alone() -> None:
    x = torch.ones(2, 256)
    x[0, 3] = torch.nan
    codes, scales = fp8.quantize_block(x)
    assert scales.isnan().tolist() == [[True, False], [False, False]]
    assert codes_of(codes[0, :128]) == [0x7F] * 128
    assert codes_of(codes[0, 128:]) == [0x7E] * 128
    assert codes_of(codes[1]) == [0x7E] * 256


def test_infinity_zeroes_its_group_and_is_nan_itself() -> None:
    x = torch.ones(1, 128)
    x[0, 5] = -torch.inf
    codes, scales = fp8.quantize_block(x)
    assert scales.item() == torch.inf
    assert codes_of(codes) == [0x7F if column == 5 else 0 for column in range(128)]


def test_an_outlier_does_not_disturb_other_groups() -> None:
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(2))
    quiet = fp8.quantize_block(x)
    x[0, 200] = 1e30
    loud = fp8.quantize_block(x)
    assert torch.equal(quiet[0].view(torch.uint8)[:, :128], loud[0].view(torch.uint8)[:, :128])
    assert not torch.equal(quiet[1][:, 1], loud[1][:, 1])


@pytest.mark.parametrize("k", [1, 17, 127, 128, 129, 300])
def test_a_short_last_group_is_quantized_on_its_own(k: int) -> None:
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(k))
    codes, scales = fp8.quantize_block(x)
    assert codes.shape == (3, k)
    assert scales.shape == (3, -(-k // 128))
    tail = x[:, (k - 1) // 128 * 128 :]
    alone, scale = fp8.quantize_block(tail)
    assert torch.equal(codes[:, -tail.shape[1] :].view(torch.uint8), alone.view(torch.uint8))
    assert torch.equal(scales[:, -1:], scale)


def test_strided_rows_give_the_same_bytes() -> None:
    wide = torch.randn(5, 400, generator=torch.Generator().manual_seed(3))
    for view in (wide[:, :256], wide[:, 16:272], wide.t()[:256, :5].t()):
        codes, scales = fp8.quantize_block(view)
        same, same_scales = fp8.quantize_block(view.contiguous())
        assert torch.equal(codes.view(torch.uint8), same.view(torch.uint8))
        assert torch.equal(scales, same_scales)
        assert codes.is_contiguous()


def test_token_and_tensor_scales_are_those_of_one_group() -> None:
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(4))
    codes, scales = fp8.quantize_token(x)
    for row in range(4):
        alone, scale = fp8.quantize_block(x[row : row + 1], 50)
        assert torch.equal(codes[row].view(torch.uint8), alone[0].view(torch.uint8))
        assert scales[row].item() == scale.item()
    whole, one = fp8.quantize_tensor(x)
    flat, flat_scale = fp8.quantize_block(x.reshape(1, -1), 200)
    assert codes_of(whole) == codes_of(flat)
    assert one.shape == ()
    assert one.item() == flat_scale.item()


@pytest.mark.parametrize("quantize", [fp8.quantize_token, fp8.quantize_tensor])
def test_the_upper_bound_caps_the_scale_and_clamps(quantize: object) -> None:
    x = torch.tensor([[1.0, 1000.0]])
    codes, scale = quantize(x, torch.tensor([0.5]))  # type: ignore[operator]
    assert scale.item() == 0.5
    assert codes_of(codes) == stated(x[0].numpy(), np.float32(0.5)) == [nearest_code(2.0), 0x7E]
    free, larger = quantize(x, torch.tensor(100.0))  # type: ignore[operator]
    assert larger.item() == np.float32(1000) / np.float32(448)
    assert codes_of(free) == stated(x[0].numpy(), np.float32(larger.item()))


def test_a_static_scale_is_used_as_it_is() -> None:
    x = torch.tensor([[0.3, -7.0, 1e9, torch.nan]], dtype=torch.bfloat16)
    codes, scale = fp8.quantize_static(x, torch.tensor([0.1]))
    assert scale.shape == ()
    assert codes_of(codes) == stated(x[0].float().numpy(), np.float32(0.1))


def test_a_static_scale_of_several_numbers_is_refused() -> None:
    with pytest.raises(KernelInputError, match="one number"):
        fp8.quantize_static(torch.ones(1, 4), torch.ones(2))


@pytest.mark.parametrize("x", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int32)])
def test_what_is_no_float_matrix_is_refused(x: torch.Tensor) -> None:
    for quantize in (fp8.quantize_block, fp8.quantize_token, fp8.quantize_tensor):
        with pytest.raises(KernelInputError, match="must be a matrix"):
            quantize(x)


def test_scales_widen_exactly() -> None:
    assert torch.equal(fp8.widen_scale(torch.tensor([1.5, 3e-39])), torch.tensor([1.5, 3e-39]))
    assert fp8.widen_scale(torch.tensor([1.0078125], dtype=torch.bfloat16)).item() == 1.0078125
    codes = torch.tensor([[0, 127], [254, 255]], dtype=torch.uint8)
    expected = torch.tensor([[2.0**-127, 1.0], [2.0**127, torch.nan]])
    for stored in (codes, codes.view(torch.float8_e8m0fnu)):
        assert torch.equal(fp8.widen_scale(stored).nan_to_num(nan=7), expected.nan_to_num(nan=7))


def test_a_uint8_scale_is_never_read_as_a_number() -> None:
    assert fp8.widen_scale(torch.tensor([1], dtype=torch.uint8)).item() == 2.0**-126


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.float8_e4m3fn])
def test_scales_of_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(KernelInputError, match="dtype must be float32"):
        fp8.widen_scale(torch.ones(1).to(dtype))
