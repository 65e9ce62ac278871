"""Products that quantize some rows together in one launch, on a GPU: the bits of two launches, on many streams too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hopper_layers import DTYPES, ON_HOPPER, assert_same_bits, inputs, layer, this_chip
from hopper_once import assert_chain, assert_zero_afterwards, by_stages, wrong_of_threads

from kerneltable.kernels import hopper_fp8_block
from kerneltable.kernels.hopper_fp8_block import Once
from kerneltable.ops.hopper_fp8_once import serves

SIZES = [(400, 1040), (64, 16), (2112, 7168), (7168, 2048), (32768, 512)]
"""N x K: tails, a single block, clusters of eight, a launch of more blocks than run at once."""

pytestmark = ON_HOPPER


@pytest.fixture(autouse=True)
def counters_are_zero_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from assert_zero_afterwards(monkeypatch, hopper_fp8_block)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_one_launch_has_the_bits_of_two(n: int, k: int, dtype: str) -> None:
    kernel, bias = layer(n, k, dtype, "f32" if k == 1040 else "bf16"), torch.randn(n, device="cuda")
    for m in (5, 8, 9, 16, 31, 32, 33, 64, 65, 130, 257):
        x = inputs(m, k, DTYPES[dtype]) if k > 256 else torch.randn(m, k, device="cuda").to(DTYPES[dtype])
        for added in (None, bias):
            assert_same_bits(kernel(x, added), by_stages(kernel, x, added))
        assert isinstance(kernel._calls[m], Once) == serves(m, n, k, this_chip())
        wide = torch.full((m, k + 16), torch.nan, dtype=DTYPES[dtype], device="cuda")
        wide[:, :k] = x
        assert_same_bits(kernel(wide[:, :k], bias), by_stages(kernel, x, bias))


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (576, 7168)])
def test_it_reads_what_the_kernel_before_it_wrote_and_counts_after_it(n: int, k: int) -> None:
    kernel, chained = layer(n, k), layer(k, n)
    sources = [torch.randn(m, k, device="cuda").bfloat16() for m in (5, 64, 17, 200, 8, 33, 128)]
    assert_chain(kernel, chained, sources)


def test_a_graph_holds_two_launches_and_may_run_beside_others() -> None:
    kernel, x = layer(2112, 7168), torch.randn(64, 7168, device="cuda").bfloat16()
    wanted = kernel(x, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel(x, None)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(20):
        out.fill_(torch.nan)
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[0]):
            graph.replay()
        with torch.cuda.stream(streams[1]):
            beside = kernel(x, None)
        torch.cuda.synchronize()
        assert_same_bits(out, wanted)
        assert_same_bits(beside, wanted)


@pytest.mark.parametrize("own_streams", [True, False])
def test_threads_that_fill_the_chip_together_wait_for_nobody_for_ever(own_streams: bool) -> None:
    layers = [layer(10240, 5120), layer(2112, 7168), layer(32768, 512), layer(2048, 2048)]
    sizes = ((64, 5120), (40, 7168), (64, 512), (1000, 2048))
    sources = [torch.randn(m, k, device="cuda").bfloat16() for m, k in sizes]
    wanted = [by_stages(one, x) for one, x in zip(layers, sources, strict=True)]
    calls = [partial(one, x, None) for one, x in zip(layers, sources, strict=True)]
    assert not wrong_of_threads(calls, wanted, own_streams)
