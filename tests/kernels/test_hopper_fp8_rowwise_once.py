"""Products with scales of rows that quantize some rows together in one launch, on a GPU: the bits of two launches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hopper_layers import DTYPES, ON_HOPPER, assert_same_bits, inputs, this_chip
from hopper_once import assert_chain, assert_zero_afterwards, by_stages, wrong_of_threads

from kerneltable.kernels import hopper_fp8_rowwise
from kerneltable.kernels.hopper_fp8_rowwise import Kernel
from kerneltable.model import Problem
from kerneltable.ops.hopper_fp8_rowwise_once import serves

SIZES = [(400, 1040), (64, 16), (2112, 7168), (7168, 2048), (1024, 25600), (32768, 512)]
"""N x K: tails, a single block, clusters of eight, rows that registers do not hold, more blocks than run at once."""

pytestmark = ON_HOPPER


@pytest.fixture(autouse=True)
def counters_are_zero_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from assert_zero_afterwards(monkeypatch, hopper_fp8_rowwise)


def layer(
    n: int, k: int, dtype: str = "bf16", output: str = "bf16", granularity: str = "token", **limits: torch.Tensor
) -> Kernel:
    """A layer with a scale a token or one for all, computed, limited or given."""
    weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    scale = (torch.rand(n, 1, device="cuda") + 0.5) * k**-0.5
    scaling = "static" if "input_scale" in limits else "dynamic"
    problem = Problem(
        "fp8_w8a8", m=1, n=n, k=k, input=dtype, output=output, weight_granularity="channel",
        input_granularity=granularity, input_scaling=scaling,
    )  # fmt: skip
    return Kernel(problem, weight=weight, weight_scale=scale, chip=this_chip(), **limits)


@pytest.mark.parametrize(("granularity", "limit"), [
    ("token", ""), ("token", "input_scale_ub"), ("tensor", ""), ("tensor", "input_scale_ub"), ("tensor", "input_scale"),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_one_launch_has_the_bits_of_two(n: int, k: int, dtype: str, granularity: str, limit: str) -> None:
    limits = {limit: torch.full((1,), 2.0**-9, device="cuda")} if limit else {}
    kernel = layer(n, k, dtype, "f32" if k == 1040 else "bf16", granularity, **limits)
    bias = torch.randn(n, device="cuda")
    for m in (1, 5, 8, 9, 16, 31, 32, 33, 64, 65, 130, 257):
        x = inputs(m, k, DTYPES[dtype]) if k > 256 else torch.randn(m, k, device="cuda").to(DTYPES[dtype])
        for added in (None, bias):
            assert_same_bits(kernel(x, added), by_stages(kernel, x, added))
        assert (kernel._calls[m] is not None) == serves(m, n, k)
        wide = torch.full((m, k + 16), torch.nan, dtype=DTYPES[dtype], device="cuda")
        wide[:, :k] = x
        assert_same_bits(kernel(wide[:, :k], bias), by_stages(kernel, x, bias))


@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (576, 7168)])
def test_it_reads_what_the_kernel_before_it_wrote_and_counts_after_it(n: int, k: int, granularity: str) -> None:
    kernel, chained = layer(n, k, granularity=granularity), layer(k, n, granularity=granularity)
    sources = [torch.randn(m, k, device="cuda").bfloat16() for m in (1, 5, 64, 17, 200, 8, 33, 128)]
    assert_chain(kernel, chained, sources)


@pytest.mark.parametrize("own_streams", [True, False])
def test_threads_that_fill_the_chip_together_wait_for_nobody_for_ever(own_streams: bool) -> None:
    layers = [
        layer(10240, 5120),
        layer(2112, 7168, granularity="tensor"),
        layer(32768, 512),
        layer(2048, 2048, granularity="tensor"),
    ]
    sizes = ((64, 5120), (40, 7168), (64, 512), (1000, 2048))
    sources = [torch.randn(m, k, device="cuda").bfloat16() for m, k in sizes]
    wanted = [by_stages(one, x) for one, x in zip(layers, sources, strict=True)]
    calls = [partial(one, x, None) for one, x in zip(layers, sources, strict=True)]
    assert not wrong_of_threads(calls, wanted, own_streams)
