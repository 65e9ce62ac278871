"""Weights packed in the order of fragments: the exact inverse, and what packing refuses."""

import pytest
import torch

from kerneltable.errors import WeightsRefused
from kerneltable.model import Problem
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, EXACT_EXPONENTS, codes_of, pack, scales_of, unpack

FULL = torch.full((1, 128), 0x38, dtype=torch.uint8)
"""Codes of 1."""

SIZES = [(16, 32), (64, 128), (130, 192), (200, 416)]


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_unpacking_gives_back_every_code(n: int, k: int) -> None:
    codes = torch.randint(0, 256, (n, k), dtype=torch.uint8)
    found, exponents = unpack(pack(codes, None), n, k)
    assert torch.equal(found, codes)
    assert exponents is None


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_unpacking_gives_back_every_exponent(n: int, k: int) -> None:
    codes = torch.randint(0, 256, (n, k), dtype=torch.uint8)
    exponents = torch.randint(0, 256, (n, k // 32), dtype=torch.uint8)
    found = unpack(pack(codes, exponents), n, k)
    assert torch.equal(found[0], codes)
    assert found[1] is not None
    assert torch.equal(found[1], exponents)


def test_what_pads_a_tile_is_zero_and_its_exponents_are_one() -> None:
    packed = pack(torch.full((16, 32), 56, dtype=torch.uint8), torch.full((16, 1), 3, dtype=torch.uint8))
    codes, exponents = unpack(packed, 64, 128)
    assert int(codes.sum()) == 16 * 32 * 56
    assert exponents is not None
    assert int(exponents.int().sum()) == 16 * 3 + (64 * 4 - 16) * 127


def test_finite_codes_are_taken_as_they_are() -> None:
    weight = torch.tensor([[448.0, -448.0, 2.0**-9]]).to(torch.float8_e4m3fn)
    assert codes_of("some", weight).tolist() == [[126, 254, 1]]


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_are_refused(code: int) -> None:
    weight = torch.tensor([[0, code]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    with pytest.raises(WeightsRefused, match="some: the weight holds NaN codes"):
        codes_of("some", weight)


@pytest.mark.parametrize("dtype", sorted(EXACT_EXPONENTS))
def test_exponents_up_to_the_exact_range_are_taken(dtype: str) -> None:
    scale = torch.tensor([EXACT_EXPONENTS[dtype]], dtype=torch.uint8)
    kind, wide, exponents = scales_of("some", Problem("mxfp8", n=1, k=64, input=dtype), FULL[:, :64], scale)
    assert (kind, wide) == (BY_32, None)
    assert exponents is not None
    assert torch.equal(exponents, scale)


@pytest.mark.parametrize(("dtype", "step"), [(dtype, step) for dtype in sorted(EXACT_EXPONENTS) for step in (-1, 1)])
def test_exponents_just_outside_are_refused(dtype: str, step: int) -> None:
    code = EXACT_EXPONENTS[dtype][step == 1] + step
    scale = torch.tensor([[code]], dtype=torch.uint8)
    with pytest.raises(WeightsRefused, match=f"some: e8m0 codes must lie in .* exact in {dtype}; found {code}"):
        scales_of("some", Problem("mxfp8", n=1, k=32, input=dtype), FULL[:, :32], scale)


@pytest.mark.parametrize("dtype", sorted(EXACT_EXPONENTS))
@pytest.mark.parametrize("code", [0, 254])
def test_the_scale_of_a_group_of_zeros_may_be_any_number(dtype: str, code: int) -> None:
    codes, scale = FULL.clone(), torch.tensor([[120, code, 254, 120]], dtype=torch.uint8)
    codes[0, 32:64] = torch.tensor([0x00, 0x80], dtype=torch.uint8).repeat(16)
    problem = Problem("mxfp8", n=1, k=128, input=dtype)
    with pytest.raises(WeightsRefused, match=f"exact in {dtype}; found 120 to 254"):
        scales_of("some", problem, codes, scale)
    codes[0, 64:96] = 0
    exponents = scales_of("some", problem, codes, scale)[2]
    assert exponents is not None
    assert exponents.tolist() == [[120, 127, 127, 120]]
    scale[0, 1] = 0xFF
    with pytest.raises(WeightsRefused, match=f"exact in {dtype}; found 120 to 255"):
        scales_of("some", problem, codes, scale)


def test_scales_of_rows_and_of_the_whole_weight_become_one_a_row() -> None:
    problem = Problem("w8a16_fp8", n=4, k=32, weight_granularity="tensor")
    kind, wide, exponents = scales_of("some", problem, FULL[:, :32], torch.tensor(2.0, dtype=torch.bfloat16))
    assert (kind, exponents) == (BY_ROW, None)
    assert wide is not None
    assert wide.tolist() == [2.0] * 4


def test_scales_of_blocks_keep_their_shape() -> None:
    problem = Problem("w8a16_fp8", n=256, k=128, weight_granularity="block")
    kind, wide, _ = scales_of("some", problem, FULL, torch.ones(2, 1))
    assert kind == BY_BLOCK
    assert wide is not None
    assert wide.shape == (2, 1)
