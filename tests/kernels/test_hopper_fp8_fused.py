"""Products that quantize a few rows themselves, on a GPU: the bits of the two stages, also when launches overlap."""

from __future__ import annotations

import pytest
import torch
from hopper_layers import DTYPES, ON_HOPPER, assert_same_bits, inputs, layer

from kerneltable.ops import hopper_fp8_fused as op
from kerneltable.ops.hopper_fp8_choice import Stream

PAUSE = 20_000
"""Cycles before an input is written: longer than a launch takes."""

pytestmark = ON_HOPPER


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), [(400, 1040), (64, 16), (2112, 7168), (7168, 2048), (4096, 512)])
def test_one_launch_has_the_bits_of_two(n: int, k: int, dtype: str) -> None:
    kernel, bias = layer(n, k, dtype, "f32" if k == 1040 else "bf16"), torch.randn(n, device="cuda")
    kind = DTYPES[dtype]
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
