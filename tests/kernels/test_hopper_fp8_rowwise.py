"""hopper_fp8_rowwise: what it launches, and on a GPU its numbers, whatever kind of scales a layer has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hopper_layers import ON_HOPPER, assert_same_bits, this_chip
from recorded_launches import Driver

from kerneltable.errors import KernelUnavailable
from kerneltable.kernels import hopper_fp8_rowwise
from kerneltable.kernels.hopper_fp8_rowwise import Kernel
from kerneltable.model import Problem
from kerneltable.ops import hopper, stream_memory
from kerneltable.ops import hopper_fp8_rowwise as op
from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.hopper_fp8_choice import FEW_ROWS
from kerneltable.ops.hopper_fp8_once import COUNTER_BYTES, words
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.oracle import error_over_bound, reference64
from kerneltable.select import complete
from kerneltable.table import load_table

CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)
KINDS = {
    "token and channel": {"input_granularity": "token", "weight_granularity": "channel"},
    "tensor and channel": {"input_granularity": "tensor", "weight_granularity": "channel"},
    "limited": {"input_granularity": "token", "weight_granularity": "channel"},
    "static": {"input_scaling": "static", "input_granularity": "tensor", "weight_granularity": "tensor"},
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (op, once_op):
        monkeypatch.setattr(module, "load", found.load)
        module.prepare.cache_clear()
    for module in (hopper, once_op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    monkeypatch.setattr(hopper_fp8_rowwise, "needed", lambda chip, name, device: CHIP)
    monkeypatch.setattr(stream_memory, "eager_stream", lambda function: found.stream)
    yield found
    for module in (op, once_op):
        module.prepare.cache_clear()


def problem_of(n: int, k: int, kind: str, **details: object) -> Problem:
    problem = Problem("fp8_w8a8", n=n, k=k, **KINDS[kind], **details)  # type: ignore[arg-type]
    return complete(load_table().schemes["fp8_w8a8"], problem)


def bound(problem: Problem, data: LayerData, chip: CudaChip) -> Kernel:
    return Kernel(problem, **data.tensors, chip=chip)


def data_of(problem: Problem, kind: str, generator: torch.Generator) -> LayerData:
    """A layer's tensors; "limited" has the largest scale of the input's rows that some of them would exceed."""
    found = random_layer(problem, generator)
    if kind == "limited":
        found.tensors["input_scale_ub"] = found.x.abs().amax().float() / 448 / 2
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 9, 64, 65, 200])
def test_a_call_launches_one_product_of_what_the_quantizer_gave(m: int, kind: str, driver: Driver) -> None:
    n, k = 272, 1040
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    driver.launched.clear()
    codes, scales = kernel.quantize(torch.randn(m, k).bfloat16())
    out = kernel.product((codes, scales))
    assert (out.shape, out.dtype) == ((m, n), torch.bfloat16)
    ((instance, grid, block, arguments, maps),) = driver.launched
    choice = op.choice_of(m, n, k, 132)
    assert instance == op.instance_of(choice, "bf16")
    assert instance.early
    assert choice.columns >= min(m, FEW_ROWS)
    assert grid == (hopper.ceil_div(n, 64) * choice.split, hopper.ceil_div(m, choice.columns), 1)
    assert block == (160, 1, 1)
    step = int(kind in ("token and channel", "limited") and m > 1)
    addresses = (scales.data_ptr(), kernel.weight_scale.data_ptr(), 0, out.data_ptr())
    assert arguments == (*addresses, step, m, n, hopper.ceil_div(k, 128))
    assert maps == (
        (codes.data_ptr(), "u8", m, k, k, (choice.columns, 128)),
        (kernel.weight.data_ptr(), "u8", n, k, k, (64, 128)),
    )


def test_more_rows_than_one_dimension_of_the_grid_has(driver: Driver) -> None:
    tiles = 2**16 + 3
    grid = op.prepare(64 * tiles - 5, 48, 256, "bf16", CHIP, 0).grid
    assert grid[1] < 2**16
    assert grid[1] * (grid[2] - 1) < tiles <= grid[1] * grid[2]


def test_every_scale_of_the_weight_is_a_vector(driver: Driver) -> None:
    for kind in KINDS:
        problem = problem_of(48, 256, kind)
        data = random_layer(problem.at(1), torch.Generator().manual_seed(1))
        scale = bound(problem, data, CHIP).weight_scale
        assert scale.shape == (48,)
        assert scale.is_contiguous()
        assert torch.equal(scale, data.tensors["weight_scale"].float().reshape(-1).expand(48))


def test_all_instances_of_a_layer_are_compiled_when_it_is_packed(driver: Driver) -> None:
    problem = problem_of(4096, 4096, "token and channel")
    bound(problem, random_layer(problem.at(1), torch.Generator().manual_seed(1)), CHIP)
    asked = {op.instance_of(op.choice_of(m, 4096, 4096, 132), "bf16") for m in range(1, 300)}
    once = {once_op.instance_of(op.choice_of(m, 4096, 4096, 132), "bf16", "bf16") for m in range(1, 65)}
    assert set(driver.loaded) == asked | once


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
    for k in (16, 1040, 25600, 32768 + 16):
        launch = once_op.prepare(FEW_ROWS, 64, k, "bf16", "bf16", CHIP, 0)
        codes, scales, counters = once_op.place(1 << 30, FEW_ROWS, k, launch, hopper.TensorMap(0, None)).addresses
        assert (counters, codes) == (1 << 30, (1 << 30) + COUNTER_BYTES)
        assert codes + FEW_ROWS * k <= scales
        assert scales + 4 * FEW_ROWS <= counters + 4 * words(k)


@pytest.mark.parametrize(("m", "n", "k"), [(65, 272, 1040), (8, 16384, 4096)])
def test_more_rows_and_a_large_weight_are_two_launches(m: int, n: int, k: int, driver: Driver) -> None:
    problem = problem_of(n, k, "static")
    kernel = bound(problem, data_of(problem.at(m), "static", torch.Generator().manual_seed(1)), CHIP)
    driver.stream = 7
    kernel(torch.randn(m, k).bfloat16(), None)
    assert [one.name for one, *_ in driver.launched] == ["hopper_fp8_rowwise"]


def test_a_graph_holds_the_two_launches(driver: Driver) -> None:
    problem = problem_of(272, 1040, "static")
    kernel = bound(problem, random_layer(problem.at(8), torch.Generator().manual_seed(1)), CHIP)
    kernel(torch.randn(8, 1040).bfloat16(), None)
    assert [one.name for one, *_ in driver.launched] == ["hopper_fp8_rowwise"]
    with pytest.raises(ValueError, match="m must be at most 64; found 65"):
        once_op.prepare(65, 64, 128, "bf16", "bf16", CHIP, 0)


def test_without_a_device_it_is_not_to_be_had() -> None:
    problem = problem_of(48, 256, "static")
    with pytest.raises(KernelUnavailable, match="hopper_fp8_rowwise: needs a CUDA device; the weight is on cpu"):
        bound(problem, random_layer(problem.at(1), torch.Generator().manual_seed(1)), CHIP)


@pytest.mark.gpu
@pytest.mark.skipif(ON_HOPPER[1].args[0], reason="needs a Hopper GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(16, 16), (272, 1040), (2112, 7168), (32768, 512)])
def test_every_number_of_rows_is_within_the_bound(n: int, k: int, kind: str) -> None:
    for bias in (False, True):
        problem = problem_of(n, k, kind, bias=bias)
        for m in (1, 7, 16, 33, 64, 65, 130):
            data = data_of(problem.at(m), kind, torch.Generator(device="cuda").manual_seed(m))
            kernel = bound(problem, data, this_chip())
            torch.full((m, n), torch.nan, dtype=torch.bfloat16, device="cuda")  # where the output will lie
            out = kernel(data.x, data.bias)
            reference, magnitude = reference64(problem.at(m), data.tensors, data.x, data.bias, True)
            assert error_over_bound(out, reference, magnitude, k, "bf16", "fp8_promoted") <= 1
            assert_same_bits(kernel(data.x.contiguous(), data.bias), out)


@pytest.mark.gpu
@pytest.mark.skipif(ON_HOPPER[1].args[0], reason="needs a Hopper GPU")
def test_a_graph_gives_the_same_bits() -> None:
    problem = problem_of(4096, 4096, "token and channel")
    data = random_layer(problem.at(40), torch.Generator(device="cuda").manual_seed(1))
    kernel, graph, x = bound(problem, data, this_chip()), torch.cuda.CUDAGraph(), data.x.contiguous()
    wanted = [kernel(x[:m], None) for m in (1, 16, 40)]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = [kernel(x[:m], None) for m in (1, 16, 40)]
    for _ in range(3):
        for out in found:
            out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        for out, other in zip(found, wanted, strict=True):
            assert_same_bits(out, other)
