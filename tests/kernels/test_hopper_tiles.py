"""Tiles of block FP8 for many rows give the same bits whichever warps start their stores."""

from __future__ import annotations

import pytest
import torch
from hopper_layers import ON_HOPPER, assert_same_bits, layer

from kerneltable.ops.hopper_fp8_choice import INPUT, NOTHING, WEIGHT, tiled

pytestmark = ON_HOPPER


@pytest.mark.parametrize("output", ["bf16", "f16"])
@pytest.mark.parametrize("common", [WEIGHT, INPUT, NOTHING])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 16, 128), (257, 272, 1168), (1000, 2064, 512), (4100, 2048, 2048), (2048, 8192, 1536)]
)
def test_stores_that_warps_of_their_own_start_change_no_bit(m: int, n: int, k: int, common: int, output: str) -> None:
    kernel, bias = layer(n, k, output=output), torch.randn(n, device="cuda")
    quantized = kernel.quantize(torch.randn(m, k, device="cuda").bfloat16())
    for added in (None, bias):
        for divide in (False, True):
            wanted = kernel.product(quantized, added, tiled(256, common, divide))
            assert wanted.isfinite().all()
            for _ in range(3):
                torch.full_like(wanted, torch.nan)  # in the memory that the next output gets
                assert_same_bits(kernel.product(quantized, added, tiled(256, common, divide, apart=True)), wanted)
