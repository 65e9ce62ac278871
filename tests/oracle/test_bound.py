"""The element-wise bound: right results pass, seven kinds of wrong ones do not, for every accumulator class."""

from __future__ import annotations

import math

import pytest
import torch

from kerneltable.formats import ACCUMULATORS
from kerneltable.model import Problem
from kerneltable.run.oracle import bound, error_over_bound, quantizes_input, reference64

CLASSES = sorted(ACCUMULATORS)
SIZES = (128, 640, 7168)
M, N, TILE = 32, 96, 16


def layer(k: int, scheme: str = "fp8_block_w8a8") -> tuple[Problem, dict[str, torch.Tensor | None], torch.Tensor]:
    """A block-scaled layer of random codes, its scales between a half and twice the usual one."""
    generator = torch.Generator().manual_seed(k)
    problem = Problem(
        scheme,
        n=N,
        k=k,
        m=M,
        weight_granularity="block",
        weight_block=(32, 128),
        weight_scale="f32",
        input_granularity="block",
        input_scaling="dynamic",
    )
    codes = (torch.randn(N, k, generator=generator) * 112).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = torch.exp2(torch.rand(-(-N // 32), -(-k // 128), generator=generator) * 2 - 1) / (112 * k**0.5)
    x = torch.randn(M, k, generator=generator).to(torch.bfloat16)
    return problem, {"weight": codes, "weight_scale": scale}, x


def zero_tile(out: torch.Tensor) -> None:
    out[:TILE, :TILE] = 0


def doubled_tile(out: torch.Tensor) -> None:
    out[-TILE:, -TILE:] *= 2


def zero_row(out: torch.Tensor) -> None:
    out[7] = 0


def zero_last_column(out: torch.Tensor) -> None:
    out[:, -1] = 0


def shifted_scale(k: int) -> torch.Tensor:
    """The product with each weight block taking its neighbour's scale, as an index off by one gives it."""
    problem, tensors, x = layer(k)
    scale = tensors["weight_scale"]
    assert scale is not None
    return reference64(problem, {**tensors, "weight_scale": scale.roll(1, 0)}, x, None, True)[0]


def dropped_tail(k: int, tail: int) -> torch.Tensor:
    """The product without the last terms of every sum."""
    problem, tensors, x = layer(k)
    weight = tensors["weight"]
    assert weight is not None
    cut = weight.to(torch.float32)
    cut[:, k - tail :] = 0
    return reference64(problem, {**tensors, "weight": cut.to(weight.dtype)}, x, None, True)[0]


def judge(wrong: torch.Tensor, k: int, accumulator: str, bias: torch.Tensor | None = None) -> float:
    """Error over bound of a bf16 result for the layer of this k."""
    problem, tensors, x = layer(k)
    ref, magnitude = reference64(problem, tensors, x, bias, True)
    return error_over_bound(wrong.to(torch.bfloat16), ref, magnitude, k, "bf16", accumulator)


def right(k: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    problem, tensors, x = layer(k)
    return reference64(problem, tensors, x, bias, True)[0]


@pytest.mark.parametrize("accumulator", CLASSES)
@pytest.mark.parametrize("k", SIZES)
def test_a_correctly_rounded_result_is_within_its_bound(k: int, accumulator: str) -> None:
    assert judge(right(k), k, accumulator) <= 1


@pytest.mark.parametrize("accumulator", CLASSES)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("spoil", [zero_tile, doubled_tile, zero_row, zero_last_column])
def test_a_spoiled_part_of_the_result_is_caught(spoil: object, k: int, accumulator: str) -> None:
    out = right(k)
    spoil(out)  # type: ignore[operator]
    assert judge(out, k, accumulator) > 1


@pytest.mark.parametrize("accumulator", CLASSES)
@pytest.mark.parametrize("k", SIZES)
def test_a_shifted_scale_is_caught(k: int, accumulator: str) -> None:
    assert judge(shifted_scale(k), k, accumulator) > 1


@pytest.mark.parametrize("accumulator", sorted({*CLASSES} - {"scaled_16"}))
@pytest.mark.parametrize(("k", "tail"), [(128, 16), (128, 32), (640, 32), (640, 128), (7168, 32), (7168, 128)])
def test_a_dropped_tail_of_k_is_caught(k: int, tail: int, accumulator: str) -> None:
    assert judge(dropped_tail(k, tail), k, accumulator) > 1


@pytest.mark.parametrize(("k", "tail"), [(128, 16), (128, 32), (640, 32), (640, 128)])
def test_a_class_that_rounds_each_product_still_catches_a_dropped_tail_of_a_short_k(k: int, tail: int) -> None:
    assert judge(dropped_tail(k, tail), k, "scaled_16") > 1


@pytest.mark.parametrize("accumulator", CLASSES)
@pytest.mark.parametrize("k", SIZES)
def test_a_bias_added_twice_is_caught(k: int, accumulator: str) -> None:
    bias = torch.randn(N, generator=torch.Generator().manual_seed(9)) / 4
    out = right(k, bias)
    assert judge(out, k, accumulator, bias) <= 1
    assert judge(out + bias, k, accumulator, bias) > 1


def cut_at(values: torch.Tensor, exponent: torch.Tensor, bits: int) -> torch.Tensor:
    unit = torch.exp2(exponent - bits)
    return torch.trunc(values / unit) * unit


def exponent_of(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values == 0, -99.0, torch.floor(torch.log2(values.abs())))


def fp8_unit(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T as an SM90 FP8 unit makes it: 32 products and the sum cut at 2^-13 of the largest, promoted every 128."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float32)
    for group in range(0, a.shape[1], 128):
        running = torch.zeros_like(total, dtype=torch.float64)
        for first in range(group, group + 128, 32):
            part = slice(first, first + 32)
            terms = a[:, None, part] * b[None, :, part]
            exponents = exponent_of(a[:, None, part]) + exponent_of(b[None, :, part])
            largest = torch.maximum(exponents.amax(2), exponent_of(running))
            raw = cut_at(terms, largest.unsqueeze(2), 13).sum(2) + cut_at(running, largest, 13)
            running = cut_at(raw, exponent_of(raw), 13)
        total += running.to(torch.float32)
    return total


@pytest.mark.parametrize("data", ["normal", "uniform", "cubed", "one sign"])
@pytest.mark.parametrize("k", [128, 640, 2048])
def test_a_simulated_fp8_unit_stays_within_the_promoted_bound(k: int, data: str) -> None:
    generator = torch.Generator().manual_seed(k)
    x, w = (torch.randn(16, k, generator=generator) for _ in range(2))
    if data == "uniform":
        x = torch.rand(16, k, generator=generator) * 2 - 1
    if data == "cubed":
        x, w = x**3, w**3
    if data == "one sign":
        x, w = x.abs(), w.abs()
    a, b = ((t * 448 / t.abs().amax(1, keepdim=True)).to(torch.float8_e4m3fn).double() for t in (x, w))
    ref, magnitude = a @ b.t(), a.abs() @ b.abs().t()
    out = fp8_unit(a, b)
    assert error_over_bound(out, ref, magnitude, k, "f32", "fp8_promoted") <= 1
    if k == 128:
        assert error_over_bound(out, ref, magnitude, k, "f32", "f32") > 1


def test_data_made_to_defeat_an_fp8_unit_exceeds_the_promoted_bound() -> None:
    """What the class does not promise: one product far above 127 others, each of which is cut to nothing."""
    a = torch.full((1, 128), 7.5, dtype=torch.float64)
    b = torch.ones(1, 128, dtype=torch.float64)
    a[0, 0] = b[0, 0] = 448
    ref = a @ b.t()
    out = fp8_unit(a, b)
    assert out.item() == 448 * 448
    assert error_over_bound(out, ref, ref, 128, "f32", "fp8_promoted") > 1


@pytest.mark.parametrize("accumulator", CLASSES)
def test_the_bound_is_the_stated_formula(accumulator: str) -> None:
    kind = ACCUMULATORS[accumulator]
    ref, magnitude, k = 3.0, 50.0, 640
    grown = kind.c * k * 2.0**-24
    rounding = 2.0**-8 + 2.0**-24
    stated = (
        rounding * ref + (1 + rounding) * (grown / (1 - grown) + kind.floor) * magnitude + 2.0**-133 + k * 2.0**-149
    )
    found = bound(torch.tensor([[-ref]]).double(), torch.tensor([[magnitude]]).double(), k, "bf16", accumulator)
    assert found.item() == pytest.approx(stated, rel=1e-12)


def one(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("out", "ref", "output", "expected"),
    [
        (math.nan, 1.0, "f32", math.inf),
        (1.0, math.nan, "f32", math.inf),
        (math.nan, math.nan, "f32", 0.0),
        (math.inf, 1.0, "f32", math.inf),
        (math.inf, math.inf, "f32", 0.0),
        (-math.inf, math.inf, "f32", math.inf),
        (1.0, math.inf, "f32", math.inf),
        (math.inf, 65520.0, "f16", 0.0),
        (math.inf, -65520.0, "f16", math.inf),
        (math.inf, 60000.0, "f16", math.inf),
        (0.0, 0.0, "bf16", 0.0),
    ],
)
def test_what_is_no_number_is_judged(out: float, ref: float, output: str, expected: float) -> None:
    magnitude = one(abs(ref) if math.isfinite(ref) else 1.0)
    assert error_over_bound(one(out), one(ref), magnitude, 16, output, "f32") == expected


def test_an_empty_result_is_right_and_a_wrong_shape_is_not() -> None:
    empty = torch.empty(0, 4, dtype=torch.float64)
    assert error_over_bound(empty, empty, empty, 16, "bf16", "f32") == 0
    assert error_over_bound(empty, one(1.0), one(1.0), 16, "bf16", "f32") == math.inf


def test_one_wrong_element_far_down_is_found() -> None:
    ref = torch.ones(300, 5, dtype=torch.float64)
    out = ref.to(torch.bfloat16)
    assert error_over_bound(out, ref, ref, 16, "bf16", "f32") == 0
    out[299, 4] = 1.5
    assert error_over_bound(out, ref, ref, 16, "bf16", "f32") > 50


@pytest.mark.parametrize(
    ("granularity", "kind", "quantizes"),
    [
        ("block", "native", True),
        ("token", "reference", True),
        ("block", "weight_only", False),
        ("block", "emulation", False),
        ("none", "native", False),
        ("none", "reference", False),
    ],
)
def test_weight_kernels_leave_the_input_alone(granularity: str, kind: str, quantizes: bool) -> None:
    assert quantizes_input(Problem("s", n=1, k=1, input_granularity=granularity), kind) is quantizes
