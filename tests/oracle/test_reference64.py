"""The float64 reference, held against sums written out element by element."""

from __future__ import annotations

import pytest
import torch

from kerneltable.model import Problem
from kerneltable.ops.torch_fp8 import quantize_block, quantize_token, widen_e8m0
from kerneltable.ops.torch_mx import quantize_mx
from kerneltable.run import oracle

M, N, K = 3, 5, 70


def codes(seed: int) -> torch.Tensor:
    values = torch.randn(N, K, generator=torch.Generator().manual_seed(seed)) * 50
    return values.to(torch.float8_e4m3fn)


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def summed(left: torch.Tensor, right: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Sums and sums of magnitudes of left [m, k] and right [n][k], in plain Python."""
    rows = left.tolist()
    ref = [[sum(a * b for a, b in zip(row, line, strict=True)) for line in right] for row in rows]
    magnitude = [[sum(abs(a * b) for a, b in zip(row, line, strict=True)) for line in right] for row in rows]
    return ref, magnitude


def assert_near(found: tuple[torch.Tensor, torch.Tensor], stated: tuple[list[list[float]], list[list[float]]]) -> None:
    for tensor, values in zip(found, stated, strict=True):
        assert tensor.dtype == torch.float64
        assert torch.allclose(tensor, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantize", [True, False])
def test_block_scales_meet_their_blocks_also_in_ragged_ones(quantize: bool) -> None:
    problem = Problem(
        "fp8_block_w8a8", n=N, k=K, weight_granularity="block", weight_block=(2, 32), input_granularity="block"
    )
    weight, scale, x = codes(1), torch.rand(3, 3, generator=torch.Generator().manual_seed(2)), inputs(3)
    right = [[weight[i, j].double().item() * scale[i // 2, j // 32].item() for j in range(K)] for i in range(N)]
    left = x.double()
    if quantize:
        quantized, scales = quantize_block(x, 32)
        left = quantized.double() * scales.double()[:, [j // 32 for j in range(K)]]
    found = oracle.reference64(problem, {"weight": weight, "weight_scale": scale}, x, None, quantize)
    assert_near(found, summed(left, right))


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_channel_scales_and_the_bias_meet_their_rows(shape: tuple[int, ...]) -> None:
    problem = Problem(
        "fp8_w8a8", n=N, k=K, weight_granularity="channel", input_granularity="token", input_scaling="dynamic"
    )
    weight, x = codes(4), inputs(5)
    scale = (torch.arange(N) + 1.0).to(torch.bfloat16)
    bias = torch.arange(N, dtype=torch.float32)
    quantized, scales = quantize_token(x)
    right = [[weight[i, j].double().item() * (i + 1) for j in range(K)] for i in range(N)]
    ref, magnitude = summed(quantized.double() * scales.double(), right)
    ref = [[value + i for i, value in enumerate(row)] for row in ref]
    tensors = {"weight": weight, "weight_scale": scale.reshape(shape)}
    assert_near(oracle.reference64(problem, tensors, x, bias, True), (ref, magnitude))


@pytest.mark.parametrize("stored", ["uint8", "e8m0"])
def test_mx_scales_are_powers_of_two_on_both_sides(stored: str) -> None:
    problem = Problem("mxfp8", n=N, k=K, weight_granularity="block", weight_block=(1, 32), input_granularity="block")
    weight, x = codes(6), inputs(7)
    exponents = torch.randint(120, 134, (N, 3), generator=torch.Generator().manual_seed(8)).to(torch.uint8)
    scale = exponents if stored == "uint8" else exponents.view(torch.float8_e8m0fnu)
    right = [
        [weight[i, j].double().item() * 2.0 ** (exponents[i, j // 32].item() - 127) for j in range(K)] for i in range(N)
    ]
    quantized, shared = quantize_mx(x)
    left = quantized.double() * widen_e8m0(shared).double()[:, [j // 32 for j in range(K)]]
    found = oracle.reference64(problem, {"weight": weight, "weight_scale": scale}, x, None, True)
    assert_near(found, summed(left, right))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_scales_static_or_capped_are_used(shape: tuple[int, ...]) -> None:
    weight, x = codes(9), torch.full((1, K), 2.0)
    scale = torch.full(shape, 0.5)
    ones = {"weight": torch.ones_like(weight, dtype=torch.float32).to(torch.float8_e4m3fn), "weight_scale": scale}
    static = Problem(
        "fp8_w8a8", n=N, k=K, weight_granularity="tensor", input_granularity="tensor", input_scaling="static"
    )
    ref, _ = oracle.reference64(static, {**ones, "input_scale": torch.full(shape, 2.0**-10)}, x, None, True)
    assert (ref == K * 0.5 * 448 * 2.0**-10).all()
    dynamic = Problem(
        "fp8_w8a8", n=N, k=K, weight_granularity="tensor", input_granularity="tensor", input_scaling="dynamic"
    )
    ref, _ = oracle.reference64(dynamic, {**ones, "input_scale_ub": torch.full(shape, 2.0**-10)}, x, None, True)
    assert (ref == K * 0.5 * 448 * 2.0**-10).all()


def test_pieces_of_the_weight_give_the_same_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(
        "fp8_block_w8a8", n=N, k=K, weight_granularity="block", weight_block=(2, 32), input_granularity="block"
    )
    tensors = {"weight": codes(1), "weight_scale": torch.rand(3, 3, generator=torch.Generator().manual_seed(2))}
    whole = oracle.reference64(problem, tensors, inputs(3), None, True)
    monkeypatch.setattr(oracle, "ELEMENTS_AT_ONCE", 2 * K)
    pieces = oracle.reference64(problem, tensors, inputs(3), None, True)
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=0)
