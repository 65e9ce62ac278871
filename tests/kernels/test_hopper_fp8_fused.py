"""Products that quantize a few rows themselves, on a GPU: the bits of the two stages, also when launches overlap."""

from __future__ import annotations

import pytest
import torch

from kerneltable.kernels.hopper_fp8_block import Kernel
from kerneltable.model import Problem
from kerneltable.ops import hopper_fp8_fused as op
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.hopper_fp8_choice import Stream
from kerneltable.table import load_table

PAUSE = 20_000
"""Cycles before an input is written: longer than a launch takes."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]


def this_chip() -> CudaChip:
    units = torch.cuda.get_device_properties(0).multi_processor_count
    return cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)


def layer(n: int, k: int, dtype: str = "bf16", output: str = "bf16") -> Kernel:
    weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    scale = (torch.rand(-(-n // 128), -(-k // 128), device="cuda") + 0.5) * k**-0.5
    problem = Problem("fp8_block_w8a8", m=1, n=n, k=k, input=dtype, output=output)  # the rest is compiled when asked
    return Kernel(problem, weight=weight, weight_scale=scale, chip=this_chip())


def inputs(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of different magnitudes with groups of zeros, tiny numbers, infinity and NaN in some."""
    x = torch.randn(m, k, device="cuda") * torch.randn(m, 1, device="cuda").exp()
    x[0, :128] = 0
    x[m // 2, 128:256] *= 1e-30
    if m > 3:
        x[1, k // 2], x[3, k - 1] = torch.nan, torch.inf
    return x.to(dtype)


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), [(400, 1040), (64, 16), (2112, 7168), (7168, 2048), (4096, 512)])
def test_one_launch_has_the_bits_of_two(n: int, k: int, dtype: str) -> None:
    kernel, bias = layer(n, k, dtype, "f32" if k == 1040 else "bf16"), torch.randn(n, device="cuda")
    kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    for m in range(1, op.FUSED_ROWS + 1):
        x = inputs(m, k, kind) if k > 256 else torch.randn(m, k, device="cuda").to(kind)
        for added in (None, bias):
            assert_same_bits(kernel(x, added), kernel.product(kernel.quantize(x), added))
        wide = torch.full((m, k + 16), torch.nan, dtype=kind, device="cuda")
        wide[:, :k] = x
        assert_same_bits(kernel(wide[:, :k], bias), kernel.product(kernel.quantize(x), bias))


@pytest.mark.parametrize(
    ("split", "stages", "columns", "dtype"),
    [
        (1, 2, 8, torch.bfloat16),
        (1, 8, 16, torch.float16),
        (3, 4, 8, torch.float32),
        (3, 4, 16, torch.bfloat16),
        (8, 5, 8, torch.bfloat16),
        (8, 5, 8, torch.float32),
        (8, 5, 16, torch.float16),
    ],
)
def test_every_instance_has_the_bits_of_the_streaming_one(
    split: int, stages: int, columns: int, dtype: torch.dtype
) -> None:
    kernel, choice = layer(1008, 4112), Stream(columns, stages, split)
    for m in sorted({1, 2, 3, 4, 5, 8, 9, 13, 16} & set(range(1, columns + 1))):
        x = inputs(m, 4112, dtype)
        found = op.product(x, kernel.weight, kernel.weight_scale.plain, None, "bf16", kernel.chip, choice=choice)
        assert_same_bits(found, kernel.product(kernel.quantize(x), None, choice))


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (576, 7168)])
def test_it_reads_what_the_kernel_before_it_wrote(n: int, k: int, m: int) -> None:
    kernel, chained = layer(n, k), layer(k, n)
    sources = [torch.randn(m, k, device="cuda").bfloat16() for _ in range(6)]
    wanted = []
    for source in sources:
        between = kernel.product(kernel.quantize(source))
        torch.cuda.synchronize()
        wanted.append(chained.product(chained.quantize(between)))
        torch.cuda.synchronize()
    room = torch.zeros_like(sources[0])

    def pieces() -> list[torch.Tensor]:
        found = []
        for source in sources:
            torch.cuda._sleep(PAUSE)
            room.copy_(source)
            kernel(room, None)
            found.append(chained(kernel(room, None), None))
            room.fill_(float("nan"))
        return found

    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(pieces(), wanted, strict=True))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pieces()
    for _ in range(3):
        for one in found:
            one.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
