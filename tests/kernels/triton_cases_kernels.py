"""The Triton kernel adapters against the float64 meaning of their schemes. Run by tests/ops/test_triton_ops.py."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.kernels import triton_fp8_block, triton_fp8_rowwise, triton_mxfp8_w8a16, triton_w8a16
from kerneltable.model import Problem
from kerneltable.run.oracle import error_over_bound, reference64
from ops.triton_fixtures import DEVICE, E4M3, FEATURES, FLOATS, INTERPRETED, bits, poison, random_codes

__all__ = ["poison"]
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
BLOCK = {"weight_granularity": "block", "weight_block": (128, 128)}
block_kernel, rowwise_kernel, w8a16_kernel, mxfp8_kernel = (
    partial(module.Kernel, features=FEATURES)
    for module in (triton_fp8_block, triton_fp8_rowwise, triton_w8a16, triton_mxfp8_w8a16)
)
Tensors = dict[str, torch.Tensor | None]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scale_of(kind: str, *shape: int) -> torch.Tensor:
    """Weight scales in every stored format."""
    draw = generator(sum(shape))
    if kind == "f32":
        return (torch.rand(shape, generator=draw) + 0.01).to(DEVICE)
    if kind == "bf16":
        return (torch.rand(shape, generator=draw) + 0.01).to(torch.bfloat16).to(DEVICE)
    codes = torch.randint(115, 135, shape, dtype=torch.uint8, generator=draw).to(DEVICE)
    return codes if kind == "uint8" else codes.view(torch.float8_e8m0fnu)


def rows_of(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(m, k, generator=generator(m + k)).to(dtype).to(DEVICE)


def ratio(
    kernel: object, problem: Problem, tensors: Tensors, x: torch.Tensor, *, quantized: bool, bias: bool = True
) -> float:
    """Error over bound of one call; the kernel must leave its operands alone."""
    added = torch.randn(problem.n, generator=generator(5)).to(DEVICE) if bias else None
    before = [bits(t) for t in (x, *tensors.values()) if t is not None]
    out = kernel(x, added)  # type: ignore[operator]
    assert all(
        torch.equal(a, bits(t))
        for a, t in zip(before, [t for t in (x, *tensors.values()) if t is not None], strict=True)
    )
    assert out.shape == (x.shape[0], problem.n)
    assert NAMES[out.dtype] == problem.output
    ref, magnitude = reference64(problem, tensors, x, added, quantized)
    accumulator = "fp8_promoted" if quantized else "mma_f32"
    return error_over_bound(out, ref, magnitude, problem.k, problem.output, accumulator)


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0", "uint8"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 129, 130), (7, 576, 640), (17, 8, 64)])
def test_the_block_kernel_takes_every_scale_format(m: int, n: int, k: int, scale: str) -> None:
    stored = "e8m0" if scale == "uint8" else scale
    common = partial(
        Problem,
        "fp8_block_w8a8",
        n=n,
        k=k,
        weight_scale=stored,
        input_granularity="block",
        input_scaling="dynamic",
        **BLOCK,
    )
    tensors: Tensors = {
        "weight": random_codes(n, k, generator(1)),
        "weight_scale": scale_of(scale, -(-n // 128), -(-k // 128)),
    }
    for dtype, output in ((torch.bfloat16, "bf16"), (torch.float16, "f32"), (torch.float32, "f16")):
        problem = common(input=NAMES[dtype], output=output)
        kernel = block_kernel(problem, **tensors)
        assert ratio(kernel, problem, tensors, rows_of(m, k, dtype) / 64, quantized=True) <= 1


GRANULARITIES = list(product(("channel", "tensor"), ("token", "tensor"), ("dynamic", "static")))


@pytest.mark.parametrize(("weight", "given", "scaling"), [g for g in GRANULARITIES if g[1:] != ("token", "static")])
@pytest.mark.parametrize("m", [1, 17])
def test_the_rowwise_kernel_takes_every_granularity(m: int, weight: str, given: str, scaling: str) -> None:
    n, k = 40, 200
    problem = Problem(
        "fp8_w8a8",
        n=n,
        k=k,
        weight_granularity=weight,
        weight_scale="bf16",
        input_granularity=given,
        input_scaling=scaling,
    )
    one = torch.tensor([0.013], device=DEVICE)
    for shape in ((n,), (n, 1)) if weight == "channel" else ((), (1,)):
        for upper in (None, torch.tensor(0.004, device=DEVICE)):
            tensors: Tensors = {"weight": random_codes(n, k, generator(1)), "weight_scale": scale_of("bf16", *shape)}
            tensors |= {
                "input_scale": one if scaling == "static" else None,
                "input_scale_ub": upper if scaling == "dynamic" else None,
            }
            kernel = rowwise_kernel(problem, **tensors)
            assert ratio(kernel, problem, tensors, rows_of(m, k, torch.bfloat16), quantized=True) <= 1


def test_a_static_layer_without_its_input_scale_is_refused() -> None:
    problem = Problem(
        "fp8_w8a8", n=8, k=16, weight_granularity="tensor", input_granularity="tensor", input_scaling="static"
    )
    with pytest.raises(KernelInputError, match="input_scale"):
        rowwise_kernel(problem, weight=torch.zeros(8, 16).to(E4M3), weight_scale=torch.ones(1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", ["block", "channel", "tensor"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 129, 130), (17, 136, 320)])
def test_the_w8a16_kernel_takes_every_granularity_and_input(
    m: int, n: int, k: int, granularity: str, dtype: torch.dtype
) -> None:
    shape = {"block": (-(-n // 128), -(-k // 128)), "channel": (n, 1), "tensor": ()}[granularity]
    problem = Problem(
        "w8a16_fp8", n=n, k=k, input=NAMES[dtype], output=NAMES[dtype], weight_granularity=granularity,
        weight_block=(128, 128) if granularity == "block" else None, weight_scale="f32", input_granularity="none",
    )  # fmt: skip
    tensors: Tensors = {"weight": random_codes(n, k, generator(1)), "weight_scale": scale_of("f32", *shape) / 64}
    kernel = w8a16_kernel(problem, **tensors)
    assert not kernel.nan_codes
    assert ratio(kernel, problem, tensors, rows_of(m, k, dtype), quantized=False) <= 1


@pytest.mark.parametrize("scale", ["e8m0", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 129, 32), (17, 136, 320)])
def test_the_mxfp8_kernel_takes_every_input_and_both_ways_of_scaling(
    m: int, n: int, k: int, dtype: torch.dtype, scale: str
) -> None:
    problem = Problem(
        "mxfp8", n=n, k=k, input=NAMES[dtype], output="f32", weight_granularity="block", weight_block=(1, 32),
        weight_scale="e8m0", input_granularity="block", input_scaling="dynamic",
    )  # fmt: skip
    tensors: Tensors = {"weight": random_codes(n, k, generator(1)), "weight_scale": scale_of(scale, n, k // 32)}
    assert mxfp8_kernel(problem, **tensors).fold
    assert (
        ratio(
            mxfp8_kernel(problem, **tensors),
            problem,
            tensors,
            rows_of(m, k, dtype),
            quantized=False,
        )
        <= 1
    )
    changed = tensors["weight_scale"].view(torch.uint8).clone()  # type: ignore[union-attr]
    changed[0, 0] = 20
    tensors["weight_scale"] = changed
    assert not mxfp8_kernel(problem, **tensors).fold
    assert (
        ratio(
            mxfp8_kernel(problem, **tensors),
            problem,
            tensors,
            rows_of(m, k, dtype),
            quantized=False,
        )
        <= 1
    )


def test_the_two_stages_of_a_kernel_give_what_the_call_gives() -> None:
    problem = Problem(
        "fp8_block_w8a8", n=24, k=160, weight_scale="f32", input_granularity="block", input_scaling="dynamic", **BLOCK
    )
    tensors: Tensors = {"weight": random_codes(24, 160, generator(1)), "weight_scale": scale_of("f32", 1, 2)}
    kernel = block_kernel(problem, **tensors)
    x = rows_of(5, 160, torch.bfloat16)
    assert torch.equal(bits(kernel(x, None)), bits(kernel.product(kernel.quantize(x))))


def test_packing_sees_nan_codes_of_either_sign_and_the_result_is_nan_there_alone() -> None:
    problem = Problem(
        "w8a16_fp8", n=24, k=160, weight_scale="f32", weight_granularity="tensor", input_granularity="none"
    )
    for code in (0x7F, 0xFF):
        weight = random_codes(24, 160, generator(1))
        weight.view(torch.uint8)[23, 159] = code
        kernel = w8a16_kernel(problem, weight=weight, weight_scale=torch.ones((), device=DEVICE))
        assert kernel.nan_codes
        for m in (1, 5):
            spoilt = kernel(rows_of(m, 160, torch.bfloat16), None).isnan()
            assert spoilt[:, 23].all()
            assert spoilt.sum() == m


def test_a_nan_in_one_row_of_the_input_spoils_that_row_alone() -> None:
    problem = Problem(
        "fp8_block_w8a8", n=24, k=160, weight_scale="f32", input_granularity="block", input_scaling="dynamic", **BLOCK
    )
    kernel = block_kernel(problem, weight=random_codes(24, 160, generator(1)), weight_scale=scale_of("f32", 1, 2))
    x = rows_of(17, 160, torch.bfloat16)
    x[3, 140] = float("nan")
    out = kernel(x, None)
    assert out[3].isnan().all()
    assert out.isnan().sum() == 24


def test_a_layer_with_more_than_two_to_the_31_elements_reads_its_far_end() -> None:
    if INTERPRETED:
        pytest.skip("needs 4 GiB and a GPU")
    n, k = 2**19 + 8, 2**12 + 32
    problem = Problem("w8a16_fp8", n=n, k=k, weight_scale="f32", weight_granularity="channel", input_granularity="none")
    weight = torch.zeros(n, k, dtype=torch.uint8, device=DEVICE)
    weight[-3:, -40:] = 0x38  # 1.0
    kernel = w8a16_kernel(problem, weight=weight.view(E4M3), weight_scale=torch.ones(n, device=DEVICE))
    for m in (1, 3):
        out = kernel(torch.ones(m, k, dtype=torch.bfloat16, device=DEVICE), None)
        assert (out[:, -3:] == 40).all()
        assert (out[:, :-3] == 0).all()
