"""Eager calls of hopper_fp8_rowwise that are one launch, and those that are not."""

from __future__ import annotations

import pytest
import torch
from recorded_launches import Driver
from rowwise_layers import CHIP, KINDS, bound, data_of, driver, problem_of

from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops.hopper_fp8_choice import FEW_ROWS
from kerneltable.ops.hopper_fp8_launch import Launch
from kerneltable.ops.hopper_fp8_once import COUNTER_BYTES, words
from kerneltable.run.layer_data import random_layer

__all__ = ["driver"]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 9, 64])
def test_a_few_rows_outside_a_graph_are_one_launch_of_the_two(
    m: int, kind: str, with_bias: bool, driver: Driver
) -> None:
    n, k = 272, 1040
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    bias, x = torch.randn(n) if with_bias else None, torch.randn(m, k).bfloat16()
    kernel.product(kernel.quantize(x), bias)
    apart = driver.launched.pop()
    driver.launched.clear()
    driver.stream = 7
    out = kernel(x, bias)
    ((one, grid, block, arguments, maps),) = driver.launched
    assert (one.name, grid, block) == ("hopper_fp8_rowwise_once", *apart[1:3])
    assert dict(apart[0].defines).items() <= dict(one.defines).items()
    assert one.shared_bytes == apart[0].shared_bytes
    source, given, upper, codes, scales, counters, *rest = arguments
    own = 0 if bias is None else bias.data_ptr()
    common = int(kind == "tensor and channel" and m > 1)
    assert (source, rest) == (x.data_ptr(), [kernel.weight_scale.data_ptr(), own, out.data_ptr(), m, n, k, common, k])
    assert [bool(given), bool(upper)] == [kind == "static", kind == "limited"]
    assert maps == ((codes, "u8", m, k, k, apart[4][0][-1]), apart[4][1])
    assert counters + COUNTER_BYTES == codes
    assert codes + m * k <= scales
    assert (scales - counters) % 128 == 0
    assert scales + 4 * m <= counters + 4 * words(k)


def test_the_memory_of_a_stream_holds_codes_and_scales_of_every_number_of_rows(driver: Driver) -> None:
    memory, driver.stream = 1 << 30, 7
    for k in (16, 1040, 25600, 32768 + 16):
        launch = once_op.prepare(FEW_ROWS, 64, k, "bf16", "bf16", CHIP, 0)
        place = once_op.place(memory, 7, launch, (FEW_ROWS, 64, k), driver.tensor_map("weight"), (0, 0), 0, 0)
        place(torch.zeros(FEW_ROWS, k), k, None, torch.zeros(0))
        codes, scales, counters = driver.launched[-1][3][3:6]
        assert (counters, codes) == (memory, memory + COUNTER_BYTES)
        assert codes + FEW_ROWS * k <= scales
        assert scales + 4 * FEW_ROWS <= counters + 4 * words(k)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), [(65, 272, 1040), (130, 2112, 1024), (1030, 48, 16)])
def test_more_rows_outside_a_graph_are_one_launch_of_the_two(
    m: int, n: int, k: int, kind: str, with_bias: bool, driver: Driver
) -> None:
    problem = problem_of(n, k, kind)
    data = data_of(problem.at(m), kind, torch.Generator().manual_seed(1))
    kernel = bound(problem, data, CHIP)
    bias, x = torch.randn(n) if with_bias else None, torch.randn(m, k).bfloat16()
    kernel.product(kernel.quantize(x), bias)
    apart = driver.launched.pop()
    driver.launched.clear()
    driver.stream = 7
    out = kernel(x, bias)
    ((one, grid, block, arguments, maps),) = driver.launched
    assert (one, grid, block) == apart[:3]
    stays = one.name == "hopper_fp8_rowwise_tiled"
    source, given, upper, codes, scales, counters, *rest = arguments
    together, shares = once_op.shares_of(m, once_op.prepare(m, n, k, "bf16", "bf16", CHIP, 0))
    factors = kernel.weight_scale.data_ptr()
    addresses = [*([] if stays else [factors]), 0 if bias is None else bias.data_ptr(), out.data_ptr()]
    common = int(kind == "tensor and channel")
    sizes = [1, m, n, k, common, together, shares, k]
    assert (source, rest) == (x.data_ptr(), [*addresses, *sizes, *([0, 0, 0] if stays else [])])
    assert [bool(given), bool(upper)] == [kind == "static", "input_scale_ub" in data.tensors]
    assert [about for _, *about in maps] == [about for _, *about in apart[4]]
    assert [at for at, *_ in maps] == [codes, kernel.weight.data_ptr(), *([factors, out.data_ptr()] if stays else [])]
    assert counters + COUNTER_BYTES == codes
    assert codes + m * k <= scales
    assert scales + 4 * m <= counters + 4 * words(k, m)


@pytest.mark.parametrize("blocks", [1, 16, 132])
@pytest.mark.parametrize("m", [65, 100, 132, 133, 264, 500, 2048])
def test_every_row_has_a_share_and_every_block_one_if_there_are_enough(m: int, blocks: int) -> None:
    launch = Launch(None, (blocks, 1, 1), (384, 1, 1), 8, (1, 1), (1, 1), (1, 1))  # type: ignore[arg-type]
    warps, shares = once_op.shares_of(m, launch)
    each = 8 // warps
    assert warps in (1, 2, 4, 8)
    assert shares <= blocks
    assert shares == blocks or shares * each >= m
    assert warps == 8 or shares * each * 2 > blocks  # not more warps for a row where blocks would have nothing to do


def launched_by_a_call(m: int, n: int, k: int, driver: Driver) -> tuple[str, tuple[int, ...]]:
    """The product that an eager call launches behind its quantizer, and its arguments; scales are given."""
    problem = problem_of(n, k, "static")
    kernel = bound(problem, data_of(problem.at(m), "static", torch.Generator().manual_seed(1)), CHIP)
    driver.stream = 7
    kernel(torch.randn(m, k).bfloat16(), None)
    ((one, _, _, arguments, _),) = driver.launched
    return one.name, arguments


def test_what_takes_long_is_two_launches(driver: Driver) -> None:
    name, _ = launched_by_a_call(8, 16384, 4096, driver)
    assert name == "hopper_fp8_rowwise"
    driver.launched.clear()
    name, arguments = launched_by_a_call(256, 10240, 5120, driver)
    assert (name, arguments[:4]) == ("hopper_fp8_rowwise_tiled", (0, 0, 0, 0))
    assert not once_op.serves(1024, 128, 7168)  # a stream keeps memory for so many codes
    assert once_op.serves(256, 10240, 4096)


def test_divided_tiles_are_two_launches(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_op, "small", lambda *_: True)
    name, arguments = launched_by_a_call(1024, 2112, 7168, driver)
    assert (name, arguments[:4]) == ("hopper_fp8_rowwise_tiled", (0, 0, 0, 0))


def test_a_graph_holds_the_two_launches(driver: Driver) -> None:
    problem = problem_of(272, 1040, "static")
    kernel = bound(problem, random_layer(problem.at(8), torch.Generator().manual_seed(1)), CHIP)
    kernel(torch.randn(8, 1040).bfloat16(), None)
    assert [one.name for one, *_ in driver.launched] == ["hopper_fp8_rowwise"]
