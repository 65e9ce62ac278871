"""Eager calls of the Hopper FP8 kernels in several launches, on a GPU: the bits of the stages, on many streams too."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hopper_layers import DTYPES, ON_HOPPER, assert_same_bits, inputs, layer, rowwise_layer
from hopper_once import assert_chain, by_stages, wrong_of_threads

from kerneltable.ops import hopper_fp8_once, hopper_fp8_rowwise_once
from kerneltable.ops.hopper_fp8_stages import Stages

ROWS = (5, 64, 65, 130, 300, 1000)
SIZES = [(400, 1040), (64, 16), (2112, 7168)]
"""N x K: tails, a single block, tiles that are divided for 300 rows and more."""

MAKERS = {
    "blocks": layer,
    "tokens": rowwise_layer,
    "tensor": partial(rowwise_layer, granularity="tensor"),
}

pytestmark = ON_HOPPER


@pytest.fixture(autouse=True)
def nothing_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hopper_fp8_once, hopper_fp8_rowwise_once):
        monkeypatch.setattr(module, "serves", lambda *_: False)


def limited(maker: str, limit: str, *size: Any) -> Any:
    limits = {limit: torch.full((1,), 2.0**-9, device="cuda")} if limit else {}
    return MAKERS[maker](*size, **limits)


@pytest.mark.parametrize(("maker", "limit"), [
    ("blocks", ""), ("tokens", ""), ("tokens", "input_scale_ub"), ("tensor", ""), ("tensor", "input_scale_ub"),
    ("tensor", "input_scale"),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_calls_have_the_bits_of_the_stages(n: int, k: int, dtype: str, maker: str, limit: str) -> None:
    kernel = limited(maker, limit, n, k, dtype, "f32" if k == 1040 else "bf16")
    bias = torch.randn(n, device="cuda")
    for m in ROWS:
        x = inputs(m, k, DTYPES[dtype]) if k > 256 else torch.randn(m, k, device="cuda").to(DTYPES[dtype])
        for added in (None, bias, None):
            assert_same_bits(kernel(x, added), by_stages(kernel, x, added))
        calls = kernel._calls[m]
        assert isinstance(calls, Stages)
        assert calls.known


@pytest.mark.parametrize("maker", MAKERS)
def test_they_read_what_the_kernel_before_them_wrote(maker: str) -> None:
    kernel, chained = MAKERS[maker](4096, 2048), MAKERS[maker](2048, 4096)
    assert_chain(kernel, chained, [torch.randn(m, 2048, device="cuda").bfloat16() for m in (5, 300, 64, 17, 1000)])


@pytest.mark.parametrize("own_streams", [True, False])
def test_threads_do_not_share_what_lies_between_launches(own_streams: bool) -> None:
    layers = [layer(10240, 5120), rowwise_layer(2112, 7168, granularity="tensor"), rowwise_layer(32768, 512)]
    sources = [torch.randn(m, k, device="cuda").bfloat16() for m, k in ((64, 5120), (300, 7168), (64, 512))]
    wanted = [by_stages(one, x) for one, x in zip(layers, sources, strict=True)]
    calls = [partial(one, x, None) for one, x in zip(layers, sources, strict=True)]
    assert not wrong_of_threads(calls, wanted, own_streams)
