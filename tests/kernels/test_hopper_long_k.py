"""Few rows and a long k on a GPU: each block of k meets its own scale, however many of them a block of threads has."""

from __future__ import annotations

import pytest
import torch
from hopper_layers import ON_HOPPER, this_chip

from kerneltable.ops import hopper_fp8_block, hopper_fp8_choice, hopper_w8a16
from kerneltable.ops.cuda_quantize import quantize_block_by_column
from kerneltable.ops.fragment_tiles import BY_BLOCK, pack
from kerneltable.ops.hopper_w8a16_few import LARGE_STAGES, STAGES, Variant
from kerneltable.ops.hopper_w8a16_variants import variant
from kerneltable.run.oracle import error_over_bound

N, BLOCKS = 80, 547
"""Parts of k of 68 and 69 blocks: scales are read 32 at a time (csrc/include/scale_run.cuh)."""

K = BLOCKS * 128

pytestmark = ON_HOPPER


def weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales that are all different, and what they stand for."""
    codes = (torch.randn(N, K, device="cuda") * 3).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = torch.rand(1, BLOCKS, device="cuda") + 0.25
    return codes, scales, codes.double() * scales.double().repeat_interleave(128, 1)


def assert_right(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, arithmetic: str) -> None:
    error = error_over_bound(out, x @ weight.t(), x.abs() @ weight.abs().t(), K, "bf16", arithmetic)
    assert error <= 1


@pytest.mark.parametrize("m", [1, 8, 16, 32, 64])
def test_quantized_inputs_meet_the_scale_of_their_block(m: int) -> None:
    codes, scales, weight = weights()
    here = this_chip()
    flags = torch.zeros(hopper_fp8_block.most_flags(here), dtype=torch.int32, device="cuda")
    found = hopper_fp8_choice.variant(m, N, K, here.multiprocessors)
    assert isinstance(found, hopper_fp8_choice.Stream)
    assert BLOCKS // found.split > 64
    x, x_scales = quantize_block_by_column(torch.randn(m, K, device="cuda").bfloat16(), here)
    packed = hopper_fp8_block.weight_scale_of(scales)
    out = hopper_fp8_block.product(x, x_scales, flags, codes, packed, None, ("bf16", "bf16"), here)
    assert_right(out, x.double() * x_scales[:, :m].t().double().repeat_interleave(128, 1), weight, "fp8_promoted")


@pytest.mark.parametrize("m", [1, 8, 16, 32, 64])
def test_16_bit_inputs_meet_the_scale_of_their_block(m: int) -> None:
    codes, scales, weight = weights()
    here = this_chip()
    found = variant(m, N, K, BY_BLOCK, here.multiprocessors)
    assert isinstance(found, Variant)
    assert BLOCKS // found.split > 64
    x = torch.randn(m, K, device="cuda").bfloat16()
    packed = pack(codes.view(torch.uint8), None)
    out = hopper_w8a16.product(x, packed, scales, None, N, BY_BLOCK, ("bf16", "bf16"), here)
    assert_right(out, x.double(), weight, "mma_f32")


@pytest.mark.parametrize("m", [5, 16, 29, 64])
@pytest.mark.parametrize(("groups", "split"), [(2, 2), (3, 4), (4, 1), (4, 3)])
def test_large_blocks_reach_past_the_last_row_of_the_weight(m: int, groups: int, split: int) -> None:
    codes, scales, weight = weights()
    columns = next(columns for columns in STAGES if columns >= m)
    x = torch.randn(m, K, device="cuda").bfloat16()
    packed = pack(codes.view(torch.uint8), None)
    choice = Variant(groups, columns, LARGE_STAGES, split, 1, once=m == 5)
    out = hopper_w8a16.product(x, packed, scales, None, N, BY_BLOCK, ("bf16", "bf16"), this_chip(), choice)
    assert_right(out, x.double(), weight, "mma_f32")
