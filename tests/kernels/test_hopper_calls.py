"""The straight way through the Hopper kernels: what it launches is what their stages launch one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_launches import MEMORY, Driver, apart

from kerneltable.kernels import hopper_fp8_block, hopper_w8a16
from kerneltable.model import Problem
from kerneltable.ops import cuda_quantize, hopper, stream_memory
from kerneltable.ops import hopper_fp8_block as fp8_op
from kerneltable.ops import hopper_fp8_fused as fused_op
from kerneltable.ops import hopper_fp8_once as once_op
from kerneltable.ops import hopper_w8a16 as w8a16_op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.hopper_fp8_choice import FIXED, Stream

N, K = 256, 384
CACHED = (
    cuda_quantize.prepare,
    fp8_op.prepare,
    fp8_op.scratch,
    fused_op.prepare,
    once_op.prepare,
    w8a16_op.prepare,
    w8a16_op.input_maps,
)
CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (cuda_quantize, fp8_op, fused_op, once_op, w8a16_op):
        monkeypatch.setattr(module, "load", found.load)
    for module in (hopper, fp8_op, w8a16_op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    for kernel in (hopper_fp8_block, hopper_w8a16):
        monkeypatch.setattr(kernel, "needed", lambda chip, name, device: CHIP)
    monkeypatch.setattr(stream_memory, "eager_stream", lambda function: found.stream)
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
    parts = slice(2, 4) if m > 64 else slice(0)  # memory of divided tiles: there are none
    for one in (second, fourth):
        one[3][parts] = []
    assert second == fourth
    assert {"codes", "scales"} <= set(told)
    assert (own_place, own_words) == (quantized[2].data_ptr(), 2 * CHIP.multiprocessors)
    assert (place, words) == (scales + -(-3 * -(-m // 4) * 16 // 256) * 256, 0)


def test_divided_tiles_share_memory_whose_flags_the_quantizer_clears(driver: Driver) -> None:
    n, k, m = 2048, 8192, 300
    problem = Problem("fp8_block_w8a8", n=n, k=k, output="bf16")
    weight = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(16, 64), chip=CHIP)
    kernel(torch.randn(m, k).bfloat16(), None)
    (*_, cleared, words), product = driver.launched[0][3], driver.launched[1]
    _, _, sums, flags, *_, divided = product[3]
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
@pytest.mark.parametrize("m", [5, 9, 64])
def test_some_rows_outside_a_graph_are_one_launch_of_the_two(m: int, with_bias: bool, driver: Driver) -> None:
    kernel, x = fp8_kernel(), torch.randn(m, K).bfloat16()
    bias = torch.randn(N) if with_bias else None
    kernel(x, bias)
    driver.stream = 7
    out = kernel(x, bias)
    assert (out.shape, out.dtype) == ((m, N), torch.bfloat16)
    assert len(driver.asked) == 1  # by the two launches
    quantized, product, (one, grid, block, arguments, maps) = driver.launched
    assert (one.name, grid, block) == ("hopper_fp8_block_once", *product[1:3])
    assert dict(product[0].defines).items() <= dict(one.defines).items()
    assert one.shared_bytes == product[0].shared_bytes
    source, codes, scales, counters, *rest = arguments
    own = 0 if bias is None else bias.data_ptr()
    padded, blocks = quantized[3][8], -(-K // 128)
    units = m * blocks
    shares = min(grid[0], -(-units // 8))
    assert source == x.data_ptr()
    assert rest == [kernel.weight_scale.plain.data_ptr(), own, out.data_ptr(), m, N, K, padded, shares, K]
    assert maps[1] == product[4][1]
    assert [apart for _, *apart in maps] == [apart for _, *apart in product[4]]
    assert [at for at, *_ in maps] == [codes, kernel.weight.data_ptr(), scales]
    assert counters + once_op.COUNTER_BYTES == codes
    assert codes + m * K <= scales
    assert scales + blocks * padded * 4 <= counters + 4 * once_op.words(K)


def test_each_stream_has_counters_of_its_own_which_layers_share(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, x, streams = [fp8_kernel(), fp8_kernel()], torch.randn(9, K).bfloat16(), (1, 2, 1)
    seen = []
    for driver.stream in streams:
        monkeypatch.setattr(stream_memory, "current_stream", lambda device: driver.stream)
        for kernel in kernels:
            kernel(x, None)
            seen.append(driver.launched[-1][3][3])
    first, second = seen[0], seen[2]
    assert seen == [first, first, second, second, first, first]
    assert first != second


def test_on_more_streams_than_memory_is_kept_for_calls_are_two_launches(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, x, driver.stream = fp8_kernel(), torch.randn(9, K).bfloat16(), 3
    monkeypatch.setattr(stream_memory, "MOST_STREAMS", 0)
    monkeypatch.setattr(stream_memory, "current_stream", lambda device: 1 << 60)
    kernel(x, None)
    assert [one.name for one, *_ in driver.launched] == ["quantize_block", "hopper_fp8_block_stream"]


def test_a_large_weight_is_two_launches_for_which_the_host_has_time(driver: Driver) -> None:
    driver.stream = 0
    assert once_op.serves(64, 10240, 5120, CHIP)
    assert not once_op.serves(64, 8192, 8192, CHIP)
    assert not once_op.serves(65, N, K, CHIP)
    assert not once_op.serves(fused_op.FUSED_ROWS, N, K, CHIP)


@pytest.mark.parametrize("k", [16, 384, 7168, 25600, 32768 + 16])
def test_the_memory_of_a_stream_holds_counters_codes_and_scales(k: int, driver: Driver) -> None:
    words = once_op.words(k)
    assert words & (words - 1) == 0
    for m in (5, 63, 64):
        launch = fp8_op.prepare(m, 64, k, "bf16", CHIP, 0)
        assert once_op.COUNTER_BYTES + fp8_op.scratch(m, k, launch).flags <= 4 * words


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


def test_an_instance_for_every_row_never_quantizes_by_itself(driver: Driver) -> None:
    weight, problem = torch.zeros(N, K, dtype=torch.float8_e4m3fn), Problem("fp8_block_w8a8", n=N, k=K)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(2, 3), chip=CHIP, choice=FIXED)
    kernel(torch.randn(1, K).bfloat16(), None)
    assert [one.name for one, *_ in driver.launched] == ["quantize_block", "hopper_fp8_block"]


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
