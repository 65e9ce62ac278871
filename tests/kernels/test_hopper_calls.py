"""The straight way through the Hopper kernels: what it launches is what their stages launch one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hopper_calls import CHIP, K, N, driver, fp8_kernel, w8a16_kernel
from recorded_launches import MEMORY, Driver, apart

from kerneltable.kernels import hopper_fp8_block
from kerneltable.model import Problem
from kerneltable.ops import hopper_fp8_fused as fused_op
from kerneltable.ops.hopper_fp8_choice import Stream

__all__ = ["driver"]


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
@pytest.mark.parametrize("m", [9, 12, 64, 130])
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
    parts = slice(-2, None) if m > 64 else slice(0)  # memory of divided tiles: there are none
    for one in (second, fourth):
        one[3][parts] = []
    assert second == fourth
    assert {"codes", "scales"} <= set(told)
    assert (own_place, own_words) == (quantized[2].data_ptr(), 2 * CHIP.multiprocessors)
    assert (place, words) == (scales + -(-3 * -(-m // 4) * 16 // 256) * 256, 0)


@pytest.mark.parametrize("strange", ["odd address", "columns apart"])
def test_a_weight_that_tiles_cannot_be_copied_from_is_copied_once(strange: str, driver: Driver) -> None:
    room = torch.zeros(N * K + 1, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = room[1:].view(N, K) if strange == "odd address" else room[:-1].view(K, N).t()
    problem = Problem("fp8_block_w8a8", n=N, k=K, output="bf16")
    scale = torch.ones(-(-N // 128), -(-K // 128))
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=scale, chip=CHIP)
    kernel(torch.randn(9, K).bfloat16(), None)
    assert driver.maps
    assert all(address % 16 == 0 and step % 16 == 0 for address, _, _, _, step, _ in driver.maps.values())


def test_divided_tiles_share_memory_whose_flags_the_quantizer_clears(driver: Driver) -> None:
    n, k, m = 2048, 8192, 300
    problem = Problem("fp8_block_w8a8", n=n, k=k, output="bf16")
    weight = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(16, 64), chip=CHIP)
    kernel(torch.randn(m, k).bfloat16(), None)
    (*_, cleared, words), product = driver.launched[0][3], driver.launched[1]
    *_, divided, sums, flags = product[3]
    blocks = product[1][0]
    assert divided == 32
    assert blocks == CHIP.multiprocessors
    assert (cleared, words) == (flags, 2 * blocks)
    assert flags + 4 * words <= sums
    assert sums + blocks * 128 * 128 * 4 == MEMORY + driver.asked[0]
    assert driver.taken == []


def test_the_memory_between_two_launches_holds_codes_and_scales(driver: Driver) -> None:
    fp8_kernel()(torch.randn(13, K).bfloat16(), None)
    assert driver.asked == [-(-13 * K // 256) * 256 + -(-3 * 16 * 4 // 256) * 256]


@pytest.mark.parametrize("name", ["quantize_block", "hopper_fp8_block_stream"])
def test_memory_is_given_back_when_a_launch_fails(name: str, driver: Driver) -> None:
    kernel = fp8_kernel()
    driver.fails = name
    with pytest.raises(RuntimeError, match="launch failed"):
        kernel(torch.randn(9, K).bfloat16(), None)
    assert driver.taken == []


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("m", [1, 3, fused_op.FUSED_ROWS])
def test_a_few_rows_are_one_launch_with_the_parts_of_the_product(m: int, with_bias: bool, driver: Driver) -> None:
    kernel, x = fp8_kernel(), torch.randn(m, K).bfloat16()
    bias = torch.randn(N) if with_bias else None
    outs = [kernel(x, bias), kernel(x, bias)]
    outs.append(fused_op.product(x, kernel.weight, kernel.weight_scale.plain, bias, "bf16", CHIP))
    kernel.product(kernel.quantize(x), bias)
    *fused, _, staged = driver.launched
    assert len(fused) == 3
    assert driver.asked == []
    own, scale = 0 if bias is None else bias.data_ptr(), kernel.weight_scale.plain.data_ptr()
    for out, (one, grid, block, arguments, maps) in zip(outs, fused, strict=True):
        assert (out.shape, out.dtype) == ((m, N), torch.bfloat16)
        assert one.name == "hopper_fp8_block_fused"
        assert arguments == (x.data_ptr(), scale, own, out.data_ptr(), m, N, K, K)
        assert [at for at, *_ in maps] == [kernel.weight.data_ptr()]
        assert maps[0] == staged[4][1]
        assert grid == staged[1]
        assert block[0] == staged[2][0] + 32 * fused_op.QUANTIZERS
        numbers = dict(staged[0].defines)
        assert numbers.items() <= dict(one.defines).items()
        assert one.shared_bytes == staged[0].shared_bytes


def test_a_few_rows_may_lie_apart_and_at_an_odd_address_they_are_copied(driver: Driver) -> None:
    kernel, room = fp8_kernel(), torch.zeros(2 * (K + 8) + 1, dtype=torch.bfloat16)
    apart, odd = room[:-1].view(2, K + 8)[:, :K], room[1 : 2 * K + 1].view(2, K)
    for x in (apart, odd, torch.zeros(K, 2, dtype=torch.bfloat16).t()):
        kernel(x, None)
    first, *others = (arguments for _, _, _, arguments, _ in driver.launched)
    assert (first[0], first[-1]) == (apart.data_ptr(), K + 8)
    for one, x in zip(others, (odd, None), strict=True):
        assert one[0] % 16 == 0
        assert x is None or one[0] != x.data_ptr()
        assert one[-1] == K
    assert driver.asked == []


@pytest.mark.parametrize(("m", "columns"), [(9, None), (9, 8), (17, 16)])
def test_more_rows_than_an_instance_takes_are_refused(m: int, columns: int | None, driver: Driver) -> None:
    choice = None if columns is None else Stream(columns, 4, 1)
    with pytest.raises(ValueError, match=f"m must be at most.*found {m}"):
        fused_op.prepare(m, N, K, "bf16", "bf16", CHIP, 0, choice)


@pytest.mark.parametrize("make", [fp8_kernel, w8a16_kernel])
def test_rows_apart_or_at_an_odd_address_go_the_long_way(make: Any, driver: Driver) -> None:
    kernel, room = make(), torch.zeros(9 * (K + 8) + 1, dtype=torch.bfloat16)
    for x in (room[:-1].view(9, K + 8)[:, :K], room[1 : 9 * K + 1].view(9, K)):
        driver.launched.clear()
        assert kernel(x, None).shape == (9, N)
        assert driver.launched
        assert driver.taken == []
