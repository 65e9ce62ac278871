"""Eager calls of hopper_fp8_block that are one launch: it is that of the product, which quantizes the input as well."""

from __future__ import annotations

import pytest
import torch
from hopper_calls import CHIP, K, N, driver, fp8_kernel
from recorded_launches import Driver

from kerneltable.kernels import hopper_fp8_block
from kerneltable.model import Problem
from kerneltable.ops import hopper_fp8_block as fp8_op
from kerneltable.ops import hopper_fp8_fused as fused_op
from kerneltable.ops import hopper_fp8_once as once_op
from kerneltable.ops import stream_memory
from kerneltable.ops.hopper_fp8_choice import FIXED

__all__ = ["driver"]


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
    assert once_op.serves(65, 10240, 5120, CHIP)
    assert not once_op.serves(128, 10240, 5120, CHIP)  # too many steps
    assert not once_op.serves(4096, 128, 1024, CHIP)  # a stream keeps memory for so many codes
    assert not once_op.serves(fused_op.FUSED_ROWS, N, K, CHIP)


@pytest.mark.parametrize("k", [16, 384, 7168, 25600, 32768 + 16])
def test_the_memory_of_a_stream_holds_counters_codes_and_scales(k: int, driver: Driver) -> None:
    for m in (5, 63, 64, 65, 130, 257):
        words = once_op.words(k, max(m, 64))
        assert words & (words - 1) == 0
        launch = fp8_op.prepare(m, 64, k, "bf16", "bf16", CHIP, 0)
        assert once_op.COUNTER_BYTES + fp8_op.scratch(m, k, launch).flags <= 4 * words


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(130, N, K), (100, 2112, 7168), (65, 16, 16)])
def test_more_rows_outside_a_graph_are_one_launch_of_the_two(
    m: int, n: int, k: int, with_bias: bool, fixed: bool, driver: Driver
) -> None:
    weight, problem = torch.zeros(n, k, dtype=torch.float8_e4m3fn), Problem("fp8_block_w8a8", n=n, k=k, output="bf16")
    scale = torch.ones(-(-n // 128), -(-k // 128))
    choice = FIXED if fixed else None
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=scale, chip=CHIP, choice=choice)
    x, bias = torch.randn(m, k).bfloat16(), torch.randn(n) if with_bias else None
    kernel(x, bias)
    driver.stream = 7
    out = kernel(x, bias)
    quantized, product, (one, grid, block, arguments, maps) = driver.launched
    assert (one, grid, block) == product[:3]
    stays = one.name == "hopper_fp8_block"
    assert stays or one.name == "hopper_fp8_block_parts"
    source, codes, scales, counters, own, to, *sizes = arguments
    assert (source, own, to) == (x.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    padded, units = quantized[3][8], m * -(-k // 128)
    shares = min(grid[0], -(-units // 16))
    assert sizes == [m, n, k, padded, shares, k] + [0, 0, 0] * stays
    made, (_, *apart_sizes) = product[3][:4], product[3][5:]
    assert made == (0, 0, 0, 0)
    assert apart_sizes[:6] == [m, n, k, 0, 0, 0]
    assert [apart for _, *apart in maps] == [apart for _, *apart in product[4]]
    addresses = [codes, kernel.weight.data_ptr(), scales, kernel.weight_scale.apart.data_ptr(), out.data_ptr()]
    assert [at for at, *_ in maps] == addresses[: 4 + stays]
    assert counters + once_op.COUNTER_BYTES == codes
    assert codes + m * k <= scales
    assert scales + -(-k // 128) * padded * 4 <= counters + 4 * once_op.words(k, m)


def test_divided_tiles_are_two_launches(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    n, k, m = 2112, 7168, 1024
    monkeypatch.setattr(once_op, "small", lambda *_: True)
    weight, problem = torch.zeros(n, k, dtype=torch.float8_e4m3fn), Problem("fp8_block_w8a8", n=n, k=k)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(17, 56), chip=CHIP)
    assert once_op.serves(m, n, k, CHIP)
    driver.stream = 7
    kernel(torch.randn(m, k).bfloat16(), None)
    assert [one.name for one, *_ in driver.launched] == ["quantize_block", "hopper_fp8_block"]
    with pytest.raises(ValueError, match="no tile may be divided; found 68"):
        once_op.prepare(m, n, k, "bf16", "bf16", CHIP, 0)


def test_an_instance_for_every_row_does_not_quantize_in_every_block(driver: Driver) -> None:
    weight, problem = torch.zeros(N, K, dtype=torch.float8_e4m3fn), Problem("fp8_block_w8a8", n=N, k=K)
    kernel = hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(2, 3), chip=CHIP, choice=FIXED)
    for driver.stream in (None, 7):
        kernel(torch.randn(1, K).bfloat16(), None)
    names = [one.name for one, *_ in driver.launched]
    assert names == ["quantize_block", "hopper_fp8_block", "hopper_fp8_block"]
