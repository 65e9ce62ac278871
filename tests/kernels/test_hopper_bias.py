"""A float32 bias is added as it lies in memory, at any multiple of four bytes, by every kind of Hopper instance."""

from __future__ import annotations

import pytest
import torch
from hopper_layers import ON_HOPPER, assert_same_bits, layer, this_chip

from kerneltable.kernels.hopper_w8a16 import Kernel as WideInputs
from kerneltable.model import Problem

N, K = 1040, 2048
ROWS = [1, 5, 16, 64, 100, 200, 300, 1024, 4096]

pytestmark = ON_HOPPER


def odd(bias: torch.Tensor) -> torch.Tensor:
    """The same numbers, four bytes behind a multiple of 16."""
    found = torch.empty(bias.numel() + 1, device=bias.device)[1:]
    found.copy_(bias)
    assert found.data_ptr() % 8 == 4
    return found


def assert_added(wanted: torch.Tensor, plain: torch.Tensor, bias: torch.Tensor) -> None:
    """Outputs with and without a bias are one float32 sum, rounded to bf16 with it and without it: half a unit in the
    last of 8 bits of each, 2^-8 of what was rounded, which is 1 % more than what came out at most; what float32 adds to
    that is small.
    """
    with_bias, without = wanted.double(), plain.double()
    rounded = 1.01 * 2**-8 * (with_bias.abs() + without.abs()) + 2**-22 * (without.abs() + bias.abs())
    assert ((with_bias - without - bias).abs() <= rounded).all()


@pytest.mark.parametrize("m", ROWS)
def test_block_fp8(m: int) -> None:
    kernel, bias, x = layer(N, K), torch.randn(N, device="cuda"), torch.randn(m, K, device="cuda").bfloat16()
    wanted = kernel(x, bias)
    assert_same_bits(kernel(x, odd(bias)), wanted)
    assert_added(wanted, kernel(x, None), bias)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("granularity", ["channel", "block"])
def test_16_bit_inputs(m: int, granularity: str) -> None:
    weight = torch.randn(N, K, device="cuda").to(torch.float8_e4m3fn)
    shape = (N, 1) if granularity == "channel" else (-(-N // 128), K // 128)
    scale = (torch.rand(shape, device="cuda") + 0.5) * K**-0.5
    problem = Problem("w8a16_fp8", n=N, k=K, output="bf16", weight_granularity=granularity)
    kernel = WideInputs(problem, weight=weight, weight_scale=scale, chip=this_chip())
    bias, x = torch.randn(N, device="cuda"), torch.randn(m, K, device="cuda").bfloat16()
    wanted = kernel(x, bias)
    assert_same_bits(kernel(x, odd(bias)), wanted)
    assert_added(wanted, kernel(x, None), bias)
