"""hopper_fp8_rowwise: what it launches, and on a GPU its numbers, whatever kind of scales a layer has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hopper_layers import ON_HOPPER, assert_same_bits, this_chip
from recorded_launches import Driver
from rowwise_layers import CHIP, KINDS, bound, data_of, driver, problem_of

from kerneltable.errors import KernelUnavailable
from kerneltable.kernels.hopper_fp8_rowwise import Kernel
from kerneltable.ops import hopper, stream_memory
from kerneltable.ops import hopper_fp8_block as block_op
from kerneltable.ops import hopper_fp8_rowwise as op
from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops.hopper_fp8_choice import (
    INPUT,
    NOTHING,
    TILES,
    WEIGHT,
    Choice,
    Stream,
    tiled,
    variant,
)
from kerneltable.run.layer_data import random_layer
from kerneltable.run.oracle import error_over_bound, reference64

__all__ = ["driver"]


def launched_product(
    kernel: Kernel, m: int, driver: Driver, choice: Choice | None = None
) -> tuple[Any, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The one launch of a product, what it multiplies, and its output."""
    driver.launched.clear()
    quantized = kernel.quantize(torch.randn(m, kernel.problem.k).bfloat16())
    out = kernel.product(quantized, choice=choice)
    assert (out.shape, out.dtype) == ((m, kernel.problem.n), torch.bfloat16)
    (launched,) = driver.launched
    assert launched[0].early
    return launched, quantized, out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 9, 64])
def test_a_few_rows_launch_one_product_of_what_the_quantizer_gave(m: int, kind: str, driver: Driver) -> None:
    n, k = 272, 1040
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    (instance, grid, block, arguments, maps), (codes, scales), out = launched_product(kernel, m, driver)
    choice = variant(m, n, k, 132)
    assert isinstance(choice, Stream)
    assert instance == op.instance_of(choice, "bf16", "bf16")
    assert choice.columns >= m
    assert grid == (hopper.ceil_div(n, 64) * choice.split, 1, 1)
    assert block == (160, 1, 1)
    step = int(kind in ("token and channel", "limited") and m > 1)
    addresses = (scales.data_ptr(), kernel.weight_scale.data_ptr(), 0, out.data_ptr())
    assert arguments == (*addresses, step, m, n, hopper.ceil_div(k, 128))
    assert maps == (
        (codes.data_ptr(), "u8", m, k, k, (choice.columns, 128)),
        (kernel.weight.data_ptr(), "u8", n, k, k, (64, 128)),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", [None, tiled(192, WEIGHT), tiled(128, WEIGHT, divide=True), tiled(64, NOTHING)])
@pytest.mark.parametrize("m", [65, 200, 300])
def test_more_rows_are_multiplied_by_the_tiles_of_block_scales(
    m: int, choice: Choice | None, kind: str, driver: Driver
) -> None:
    n, k = 272, 1040
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    (instance, grid, block, arguments, maps), (codes, scales), out = launched_product(kernel, m, driver, choice)
    chosen = choice or variant(m, n, k, 132)
    assert instance == op.instance_of(chosen, "bf16", "bf16")
    stays = instance.name == "hopper_fp8_rowwise_tiled"
    assert stays or instance.name == "hopper_fp8_rowwise_parts"
    twin = block_op.prepare(m, n, k, "bf16", "bf16", CHIP, 0, chosen)
    assert (grid, block) == (twin.grid, twin.block)
    step = int(kind in ("token and channel", "limited"))
    factors = kernel.weight_scale.data_ptr()
    addresses = (scales.data_ptr(), 0, *(() if stays else (factors,)), 0, out.data_ptr())
    count = 17 - stays
    assert arguments[:count] == (0, 0, 0, 0, *addresses, step, m, n, k, 0, 0, 0, 0)
    rest = arguments[count:]
    assert rest[:1] == ((twin.divided,) if stays else ())
    if twin.divided:
        flags = stream_memory.memory_of(codes.device, twin.flags).now()
        assert rest[1:] == (rest[1], flags.data_ptr())
        assert not flags.any()
    copies = [(codes.data_ptr(), "u8", m, k, k, twin.codes), (kernel.weight.data_ptr(), "u8", n, k, k, twin.weight)]
    stored = [(factors, "f32", 1, n, 4 * n, (1, chosen.columns)), (out.data_ptr(), "bf16", m, n, 2 * n, (16, 64))]
    assert maps == (*copies, *(stored if stays else []))


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
    choices = [variant(m, 4096, 4096, 132) for m in (*range(1, 65), 128, 256, 1024, 4096)]
    asked = {op.instance_of(one, "bf16", "bf16") for one in choices}
    once = {once_op.instance_of(one, "bf16", "bf16") for one in choices if isinstance(one, Stream)}
    assert set(driver.loaded) == asked | once


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
        for m in (1, 7, 16, 33, 64, 65, 130, 300, 1030):
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
    problem, rows = problem_of(2112, 4096, "token and channel"), (1, 16, 40, 100, 700)
    data = random_layer(problem.at(700), torch.Generator(device="cuda").manual_seed(1))
    kernel, graph, x = bound(problem, data, this_chip()), torch.cuda.CUDAGraph(), data.x.contiguous()
    wanted = [kernel(x[:m], None) for m in rows]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = [kernel(x[:m], None) for m in rows]
    for _ in range(3):
        for out in found:
            out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        for out, other in zip(found, wanted, strict=True):
            assert_same_bits(out, other)


@pytest.mark.gpu
@pytest.mark.skipif(ON_HOPPER[1].args[0], reason="needs a Hopper GPU")
@pytest.mark.parametrize("columns", TILES)
@pytest.mark.parametrize("common", [WEIGHT, INPUT, NOTHING])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("output", ["bf16", "f32"])
def test_every_tile_is_within_the_bound(columns: int, common: int, divide: bool, output: str) -> None:
    m, n, k = 333, 1040, 2064
    problem = problem_of(n, k, "token and channel", bias=True, output=output)
    data = random_layer(problem.at(m), torch.Generator(device="cuda").manual_seed(m))
    kernel = bound(problem, data, this_chip())
    reference, magnitude = reference64(problem.at(m), data.tensors, data.x, data.bias, True)
    for apart in (False, True) if columns == 256 else (False,):
        choice = tiled(columns, common, divide, apart)
        outs = [kernel.product(kernel.quantize(data.x), data.bias, choice) for _ in range(2)]
        assert error_over_bound(outs[0], reference, magnitude, k, output, "fp8_promoted") <= 1
        assert_same_bits(*outs)
