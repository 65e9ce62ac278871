"""The MX quantizer, byte by byte, against torchao's blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_fp8 import widen_e8m0
from kerneltable.ops.torch_mx import _rounded_up_exponent, quantize_mx

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "mxfp8_semantic_vectors_torchao.json").read_text())
CASES = VECTORS["cases"]
PAIRS = VECTORS["f32_to_e8m0_rceil"]


def block_of(case: dict[str, Any]) -> torch.Tensor:
    """The 32 inputs of a case as a [1, 32] tensor of its dtype, from their bits."""
    if case["input_dtype"] == "float32":
        return torch.from_numpy(np.array([case["input_bits"]], dtype=np.uint32).view(np.float32).copy())
    bits = torch.from_numpy(np.array([case["input_bits"]], dtype=np.uint16).view(np.int16).copy())
    return bits.view(torch.bfloat16)


def same_nan(codes: list[int]) -> list[int]:
    return [0x7F if code & 0x7F == 0x7F else code for code in codes]


def test_the_vectors_are_all_there() -> None:
    assert len(CASES) == 72
    assert len(PAIRS) == 18


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['name']}-{c['scale_mode']}-{c['input_dtype']}")
def test_a_block_gives_the_bytes_of_the_vector(case: dict[str, Any]) -> None:
    codes, exponents = quantize_mx(block_of(case), case["scale_mode"])
    assert exponents.tolist() == [[case["expect_scale_e8m0"]]]
    assert same_nan(codes.view(torch.uint8)[0].tolist()) == same_nan(case["expect_data"])


@pytest.mark.parametrize(("bits", "code"), PAIRS)
def test_rounding_up_to_e8m0_gives_the_code_of_the_vector(bits: int, code: int) -> None:
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert _rounded_up_exponent(value).item() == code


@pytest.mark.parametrize("power", range(-100, 120, 7))
def test_just_below_a_power_of_two_has_the_lower_exponent(power: int) -> None:
    below = float(np.nextafter(np.float32(2.0**power), np.float32(0)))
    exponents = [quantize_mx(torch.full((1, 32), value))[1].item() for value in (below, 2.0**power)]
    assert exponents == [power - 1 - 8 + 127, power - 8 + 127]


def test_every_block_is_quantized_on_its_own() -> None:
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(5))
    codes, exponents = quantize_mx(x)
    assert exponents.shape == (5, 3)
    for block in range(3):
        columns = slice(32 * block, 32 * block + 32)
        alone, exponent = quantize_mx(x[:, columns])
        assert torch.equal(codes[:, columns].view(torch.uint8), alone.view(torch.uint8))
        assert torch.equal(exponents[:, block : block + 1], exponent)


@pytest.mark.parametrize("mode", ["floor", "rceil"])
def test_a_dequantized_value_is_near(mode: str) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(6))
    codes, exponents = quantize_mx(x, mode)
    back = codes.float() * widen_e8m0(exponents).repeat_interleave(32, dim=1)
    scale = widen_e8m0(exponents).repeat_interleave(32, dim=1)
    within = (back - x).abs() <= 2.0**-4 * x.abs() + 2.0**-10 * scale
    saturated = x.abs() > 448 * scale
    assert (within | saturated).all()
    assert not (saturated.any() and mode == "rceil")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(KernelInputError, match="mode: must be one of floor, rceil; found 'even'"):
        quantize_mx(torch.ones(1, 32), "even")


def test_what_is_no_float_matrix_is_refused() -> None:
    with pytest.raises(KernelInputError, match="floating-point matrix"):
        quantize_mx(torch.ones(32))
