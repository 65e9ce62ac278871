"""Kernels that start while the one before them runs, on a real GPU: the same bits as with a pause after each."""

from __future__ import annotations

import pytest
import torch

from kerneltable.kernels.hopper_w8a16 import Kernel
from kerneltable.model import Problem
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.table import load_table

SIZE = 1024
GRANULARITIES = ("channel", "block")
hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


def layers() -> list[Kernel]:
    """Layers whose outputs stay about as large as their inputs."""
    units = torch.cuda.get_device_properties(0).multi_processor_count
    chip = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)
    weight = torch.randn(SIZE, SIZE, device="cuda").to(torch.float8_e4m3fn)
    made = []
    for granularity in GRANULARITIES:
        shape = (SIZE, 1) if granularity == "channel" else (SIZE // 128, SIZE // 128)
        problem = Problem("w8a16_fp8", n=SIZE, k=SIZE, output="bf16", weight_granularity=granularity)
        scale = (torch.rand(shape, device="cuda") + 0.5) * SIZE**-0.5
        made.append(Kernel(problem, weight=weight, weight_scale=scale, chip=chip))
    return made


def chain(kernels: list[Kernel], x: torch.Tensor, bias: torch.Tensor, pause: bool) -> torch.Tensor:
    """Layer after layer, each with a bias that is written and, once more than a few were, converted just before."""
    for kernel in 3 * kernels:
        x = kernel(x, bias.clone())
        if pause:
            torch.cuda.synchronize()
    return x


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("m", [1, 16, 64, 128, 300, 1100])
def test_layers_that_overlap_give_the_bits_of_layers_with_pauses(m: int) -> None:
    kernels, bias = layers(), torch.randn(SIZE, device="cuda").bfloat16()
    inputs = [torch.randn(m, SIZE, device="cuda").bfloat16() for _ in range(8)]
    wanted = [chain(kernels, x, bias, pause=True) for x in inputs]
    assert not torch.equal(wanted[0], wanted[1])
    held = torch.zeros_like(inputs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(kernels, held, bias, pause=False)
    for _ in range(4):
        found = [chain(kernels, x, bias, pause=False) for x in inputs]
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        for x, other in zip(inputs, wanted, strict=True):
            held.copy_(x)
            out.fill_(float("nan"))
            graph.replay()
            assert torch.equal(out, other)
