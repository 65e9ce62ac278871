"""Input quantizers that start while the kernel before them runs, on a real GPU: they read what that one has written."""

from __future__ import annotations

import pytest
import torch

from kerneltable.model import Problem
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.input_quantizer import Quantizer, input_quantizer, source_of
from kerneltable.ops.torch_dequantize import Quantized, quantize_input
from kerneltable.table import load_table

PAUSE = 20_000
"""Cycles before an input is written: longer than a launch takes."""

KINDS = {
    "block": ("fp8_block_w8a8", "dynamic", (128, 128)),
    "token": ("fp8_w8a8", "dynamic", None),
    "tensor": ("fp8_w8a8", "dynamic", None),
}
overlapping = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)


def pieces(quantize: Quantizer, sources: list[torch.Tensor], room: torch.Tensor) -> list[Quantized]:
    """Each source copied late, quantized twice, the first codes dropped, and overwritten at once."""
    found = []
    for source in sources:
        torch.cuda._sleep(PAUSE)
        room.copy_(source)
        quantize(room)
        found.append(quantize(room))
        room.fill_(float("nan"))
    return found


def assert_same(found: list[Quantized], wanted: list[Quantized]) -> None:
    for (codes, scales), (own_codes, own_scales) in zip(found, wanted, strict=True):
        assert torch.equal(codes.view(torch.uint8), own_codes.view(torch.uint8))
        assert torch.equal(scales, own_scales)


@pytest.mark.gpu
@overlapping
@pytest.mark.parametrize("m", [1, 64, 1024])
@pytest.mark.parametrize("granularity", KINDS)
def test_a_quantizer_reads_what_the_kernel_before_it_wrote(granularity: str, m: int) -> None:
    scheme, scaling, block = KINDS[granularity]
    units = torch.cuda.get_device_properties(0).multi_processor_count
    chip = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)
    problem = Problem(
        scheme, n=128, k=4096, input="bf16", input_granularity=granularity, input_scaling=scaling, weight_block=block
    )
    quantize = input_quantizer(problem, torch.device("cuda", 0), chip=chip)
    assert source_of(quantize) == "cuda"
    sources = [(torch.randn(m, 4096, device="cuda") * (i + 1)).bfloat16() for i in range(6)]
    wanted = [quantize_input(problem, source, None, None) for source in sources]
    room = torch.zeros_like(sources[0])
    for _ in range(3):
        assert_same(pieces(quantize, sources, room), wanted)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pieces(quantize, sources, room)
    for _ in range(3):
        for codes, scales in found:
            codes.view(torch.uint8).fill_(0xA5)
            scales.fill_(float("nan"))
        graph.replay()
        assert_same(found, wanted)
