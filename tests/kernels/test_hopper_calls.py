"""The straight way through the Hopper kernels: what it launches is what their stages launch one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_launches import MEMORY, Driver, apart

from kerneltable.kernels import hopper_fp8_block, hopper_w8a16
from kerneltable.model import Problem
from kerneltable.ops import cuda_quantize, hopper
from kerneltable.ops import hopper_fp8_block as fp8_op
from kerneltable.ops import hopper_w8a16 as w8a16_op
from kerneltable.ops.cuda_chip import CudaChip

N, K = 256, 384
CACHED = (cuda_quantize.prepare, fp8_op.prepare, fp8_op.scratch, w8a16_op.prepare, w8a16_op.input_maps)
CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (cuda_quantize, fp8_op, w8a16_op):
        monkeypatch.setattr(module, "load", found.load)
    for module in (hopper, fp8_op, w8a16_op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    for kernel in (hopper_fp8_block, hopper_w8a16):
        monkeypatch.setattr(kernel, "needed", lambda chip, name, device: CHIP)
    monkeypatch.setattr(hopper_fp8_block, "take", found.take)
    monkeypatch.setattr(hopper_fp8_block, "give_back", found.give_back)
    for cached in CACHED:
        cached.cache_clear()
    yield found
    for cached in CACHED:
        cached.cache_clear()


def fp8_kernel() -> Any:
    weight = torch.zeros(N, K, dtype=torch.float8_e4m3fn)
    problem = Problem("fp8_block_w8a8", n=N, k=K, output="bf16")
    return hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(2, 3), chip=CHIP)


def w8a16_kernel() -> Any:
    weight = torch.zeros(N, K, dtype=torch.float8_e4m3fn)
    problem = Problem("w8a16_fp8", n=N, k=K, output="bf16", weight_granularity="channel")
    return hopper_w8a16.Kernel(problem, weight=weight, weight_scale=torch.ones(N, 1), chip=CHIP)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("m", [1, 5, 64, 130])
def test_w8a16_launches_what_its_product_launches(m: int, with_bias: bool, driver: Driver) -> None:
    kernel, x = w8a16_kernel(), torch.randn(m, K).bfloat16()
    bias = torch.randn(N) if with_bias else None
    outs = [kernel(x, bias), kernel.product(x, bias), kernel(x, bias)]
    assert all((out.shape, out.dtype) == ((m, N), torch.bfloat16) for out in outs)
    first, second, third = (apart(one, {out.data_ptr(): "out"}) for one, out in zip(driver.launched, outs, strict=True))
    assert first == second == third
    assert "out" in first[3]
    assert bias is None or bias.data_ptr() in first[3]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("m", [1, 5, 64, 130])
def test_fp8_block_launches_what_its_stages_launch(m: int, with_bias: bool, driver: Driver) -> None:
    kernel, x = fp8_kernel(), torch.randn(m, K).bfloat16()
    bias = torch.randn(N).bfloat16().float() if with_bias else None
    out = kernel(x, bias)
    quantized = kernel.quantize(x)
    staged = kernel.product(quantized, bias)
    scales = MEMORY + -(-m * K // 256) * 256
    straight = {MEMORY: "codes", scales: "scales", out.data_ptr(): "out"}
    by_stages = {quantized[0].data_ptr(): "codes", quantized[1].data_ptr(): "scales", staged.data_ptr(): "out"}
    first, second, third, fourth = (
        apart(one, names) for one, names in zip(driver.launched, [straight] * 2 + [by_stages] * 2, strict=True)
    )
    (*told, place, words), (*told_apart, own_place, own_words) = first[3], third[3]
    assert (told, first[:3], first[4]) == (told_apart, third[:3], third[4])
    parts = slice(3, 5) if m > 64 else slice(0)  # memory of divided tiles: there are none
    for one in (second, fourth):
        one[3][parts] = []
    assert second == fourth
    assert {"codes", "scales"} <= set(told)
    assert (own_place, own_words) == (quantized[2].data_ptr(), 2 * CHIP.multiprocessors)
    assert (place, words) == (scales + -(-3 * -(-m // 4) * 16 // 256) * 256, 0)


def test_divided_tiles_share_memory_whose_flags_the_quantizer_clears(driver: Driver) -> None:
    n, k, m = 2048, 8192, 200
    problem = Problem("fp8_block_w8a8", n=n, k=k, output="bf16")
    weight = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(16, 64), chip=CHIP)
    kernel(torch.randn(m, k).bfloat16(), None)
    (*_, cleared, words), product = driver.launched[0][3], driver.launched[1]
    sums, flags, divided = product[3][3], product[3][4], product[3][8]
    blocks = product[1][0]
    assert divided == 16
    assert blocks == CHIP.multiprocessors
    assert (cleared, words) == (flags, 2 * blocks)
    assert flags + 4 * words <= sums
    assert sums + blocks * 128 * 128 * 4 == MEMORY + driver.asked[0]
    assert driver.taken == []


def test_the_memory_between_two_launches_holds_codes_and_scales(driver: Driver) -> None:
    fp8_kernel()(torch.randn(5, K).bfloat16(), None)
    assert driver.asked == [-(-5 * K // 256) * 256 + -(-3 * 8 * 4 // 256) * 256]


@pytest.mark.parametrize("name", ["quantize_block", "hopper_fp8_block_stream"])
def test_memory_is_given_back_when_a_launch_fails(name: str, driver: Driver) -> None:
    kernel = fp8_kernel()
    driver.fails = name
    with pytest.raises(RuntimeError, match="launch failed"):
        kernel(torch.randn(1, K).bfloat16(), None)
    assert driver.taken == []


@pytest.mark.parametrize("make", [fp8_kernel, w8a16_kernel])
def test_rows_apart_or_at_an_odd_address_go_the_long_way(make: Any, driver: Driver) -> None:
    kernel, room = make(), torch.zeros(2 * (K + 8) + 1, dtype=torch.bfloat16)
    for x in (room[:-1].view(2, K + 8)[:, :K], room[1 : 2 * K + 1].view(2, K)):
        driver.launched.clear()
        assert kernel(x, None).shape == (2, N)
        assert driver.launched
        assert driver.taken == []
