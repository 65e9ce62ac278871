"""The straight way through the kernels of mma.sync: what it launches is what their stages launch one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_launches import MEMORY, Driver, apart

from kerneltable.kernels import marlin_w8a16, mma_fp8_block
from kerneltable.model import Problem
from kerneltable.ops import cuda_parts, cuda_quantize
from kerneltable.ops import marlin_w8a16 as w8a16_op
from kerneltable.ops import mma_fp8_block as fp8_op
from kerneltable.ops.cuda_chip import CudaChip

N = 256
WHOLE, SPLIT = 256, 4096
"""A k that stays whole and one that is split, for few rows on this chip."""

CACHED = (cuda_quantize.prepare, cuda_parts.prepare, fp8_op.prepare, w8a16_op.prepare)
CHIP = CudaChip("sm120", "sm_120f", 101376, (), 84)
KERNELS = (marlin_w8a16, mma_fp8_block)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (cuda_quantize, cuda_parts, fp8_op, w8a16_op):
        monkeypatch.setattr(module, "load", found.load)
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "needed", lambda chip, name, device: CHIP)
        monkeypatch.setattr(kernel, "take", found.take)
        monkeypatch.setattr(kernel, "give_back", found.give_back)
    for cached in CACHED:
        cached.cache_clear()
    yield found
    for cached in CACHED:
        cached.cache_clear()


def fp8_kernel(k: int) -> Any:
    weight = torch.zeros(N, k, dtype=torch.float8_e4m3fn)
    problem = Problem("fp8_block_w8a8", n=N, k=k, output="bf16")
    return mma_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(2, k // 128), chip=CHIP)


def w8a16_kernel(k: int) -> Any:
    weight = torch.zeros(N, k, dtype=torch.float8_e4m3fn)
    problem = Problem("w8a16_fp8", n=N, k=k, output="bf16", weight_granularity="channel")
    return marlin_w8a16.Kernel(problem, weight=weight, weight_scale=torch.ones(N, 1), chip=CHIP)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("m", "k", "launches"), [(1, WHOLE, 1), (5, SPLIT, 2), (130, SPLIT, 2)])
def test_w8a16_launches_what_its_product_launches(
    m: int, k: int, launches: int, with_bias: bool, driver: Driver
) -> None:
    kernel, x = w8a16_kernel(k), torch.randn(m, k).bfloat16()
    bias = torch.randn(N).bfloat16() if with_bias else None
    out = kernel(x, bias)
    staged = kernel.product(x, bias)
    assert len(driver.launched) == 2 * launches
    straight, long = driver.launched[:launches], driver.launched[launches:]
    sums = long[0][3][5]
    assert (sums == 0) == (launches == 1)
    names = {out.data_ptr(): "out", MEMORY: "sums"}, {staged.data_ptr(): "out", sums or -1: "sums"}
    assert [apart(one, names[0]) for one in straight] == [apart(one, names[1]) for one in long]
    assert driver.asked == ([straight[0][1][2] * m * N * 4] if launches == 2 else [])
    assert driver.taken == []


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("m", "k", "launches"), [(1, WHOLE, 2), (5, SPLIT, 3), (130, SPLIT, 3)])
def test_fp8_block_launches_what_its_stages_launch(
    m: int, k: int, launches: int, with_bias: bool, driver: Driver
) -> None:
    kernel, x = fp8_kernel(k), torch.randn(m, k).bfloat16()
    bias = torch.randn(N).bfloat16() if with_bias else None
    out = kernel(x, bias)
    codes, scales = kernel.quantize(x)
    staged = kernel.product((codes, scales), bias)
    assert len(driver.launched) == 2 * launches
    straight, long = driver.launched[:launches], driver.launched[launches:]
    first, second = straight[0][3], straight[1][3]
    names = {MEMORY: "codes", first[2]: "scales", out.data_ptr(): "out", second[6] or -1: "sums"}
    others = {
        codes.data_ptr(): "codes",
        scales.data_ptr(): "scales",
        staged.data_ptr(): "out",
        long[1][3][6] or -1: "sums",
    }
    assert [apart(one, names) for one in straight] == [apart(one, others) for one in long]
    assert {"codes", "scales"} <= set(apart(straight[1], names)[3])
    places = [MEMORY, MEMORY + m * k, first[2], first[2] + scales.numel() * 4]
    places += [second[6], second[6] + straight[1][1][1] * m * N * 4] if launches == 3 else []
    assert places == sorted(places)
    assert (places[-1] - MEMORY) <= driver.asked[0]
    assert driver.taken == []


@pytest.mark.parametrize("name", ["quantize_block", "mma_fp8_block", "add_parts"])
def test_memory_is_given_back_when_a_launch_fails(name: str, driver: Driver) -> None:
    kernel = fp8_kernel(SPLIT)
    driver.fails = name
    with pytest.raises(RuntimeError, match="launch failed"):
        kernel(torch.randn(5, SPLIT).bfloat16(), None)
    assert (driver.asked != [], driver.taken) == (True, [])


@pytest.mark.parametrize("name", ["marlin_w8a16", "add_parts"])
def test_the_parts_of_w8a16_are_given_back_when_a_launch_fails(name: str, driver: Driver) -> None:
    kernel = w8a16_kernel(SPLIT)
    driver.fails = name
    with pytest.raises(RuntimeError, match="launch failed"):
        kernel(torch.randn(5, SPLIT).bfloat16(), None)
    assert (driver.asked != [], driver.taken) == (True, [])


@pytest.mark.parametrize("make", [fp8_kernel, w8a16_kernel])
def test_rows_apart_or_at_an_odd_address_go_the_long_way(make: Any, driver: Driver) -> None:
    kernel, room = make(WHOLE), torch.zeros(2 * (WHOLE + 8) + 1, dtype=torch.bfloat16)
    for x in (room[:-1].view(2, WHOLE + 8)[:, :WHOLE], room[1 : 2 * WHOLE + 1].view(2, WHOLE)):
        driver.launched.clear()
        assert kernel(x, None).shape == (2, N)
        assert driver.launched
        assert driver.asked == []


@pytest.mark.parametrize("make", [fp8_kernel, w8a16_kernel])
def test_a_bias_is_converted_once(make: Any, driver: Driver) -> None:
    kernel, x, bias = make(WHOLE), torch.randn(1, WHOLE).bfloat16(), torch.randn(N).bfloat16()
    places = []
    for _ in range(2):
        kernel(x, bias)
        places.append(driver.launched[-1][3][4 if make is fp8_kernel else 3])
    assert places[0] == places[1] == kernel._bias(bias).data_ptr()


@pytest.mark.parametrize(("make", "op"), [(fp8_kernel, fp8_op), (w8a16_kernel, w8a16_op)])
def test_what_any_number_of_rows_launches_was_loaded_when_the_layer_was_packed(
    make: Any, op: Any, driver: Driver
) -> None:
    kernel = make(SPLIT)
    known = len(driver.loaded)
    for m in (*range(1, 140, 3), 256, 1024, 5000):
        kernel(torch.zeros(m, SPLIT, dtype=torch.bfloat16), None)
    asked = {launched[0] for launched in driver.launched}
    assert asked <= set(driver.loaded[:known])
    assert len({one for one in asked if one.name == op.__name__.rsplit(".", 1)[1]}) > 3
