"""The reference kernel, and the torch ones that run on a CPU, against float64 for every form that a layer can take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.kernels import reference, torch_mxfp8_emulation
from kerneltable.model import Problem
from kerneltable.ops import torch_matmul
from kerneltable.run.layer_data import EXACT_LIMIT, LayerData, exact_layer, random_layer
from kerneltable.run.oracle import error_over_bound, reference64

BLOCK = {"weight_granularity": "block", "weight_block": (128, 128)}
FORMS: dict[str, dict[str, Any]] = {
    "block-f32": {**BLOCK, "weight_scale": "f32", "input_granularity": "block", "input_scaling": "dynamic"},
    "block-bf16": {**BLOCK, "weight_scale": "bf16", "input_granularity": "block", "input_scaling": "dynamic"},
    "block-e8m0": {**BLOCK, "weight_scale": "e8m0", "input_granularity": "block", "input_scaling": "dynamic"},
    "block-64x32": {
        "weight_granularity": "block",
        "weight_block": (64, 32),
        "weight_scale": "f32",
        "input_granularity": "block",
        "input_scaling": "dynamic",
    },
    **{
        f"{weight}-{given}-{scaling}": {
            "weight_granularity": weight,
            "weight_scale": "f32",
            "input_granularity": given,
            "input_scaling": scaling,
        }
        for weight in ("tensor", "channel")
        for given in ("tensor", "token")
        for scaling in ("dynamic", "static")
    },
    "w8a16-channel": {"weight_granularity": "channel", "weight_scale": "bf16"},
    "w8a16-tensor": {"weight_granularity": "tensor", "weight_scale": "f32"},
    "w8a16-block": {**BLOCK, "weight_scale": "e8m0"},
}
MX = {"weight_granularity": "block", "weight_block": (1, 32), "weight_scale": "e8m0"}
FORMS["mx-mx"] = {**MX, "input_granularity": "block", "input_scaling": "dynamic"}
FORMS["mx-16"] = MX


def problem_of(form: str, m: int, n: int, k: int, **more: Any) -> Problem:
    scheme = "mxfp8" if form.startswith("mx") else "fp8"
    details = {"input_granularity": "none", "input_scaling": "none", **FORMS[form]}
    return Problem(scheme, m=m, n=n, k=k, **details, **more)


def kernel_of(problem: Problem, data: LayerData) -> reference.Kernel:
    return reference.Kernel(problem, **data.tensors)  # type: ignore[arg-type]


def ratio(problem: Problem, data: LayerData, out: torch.Tensor, *, quantized: bool = True, kind: str = "f32") -> float:
    ref, magnitude = reference64(problem, data.tensors, data.x, data.bias, quantized)
    return error_over_bound(out, ref, magnitude, problem.k, problem.output, kind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 130, 257), (2, 16, 128), (17, 192, 96), (130, 7, 300)])
def test_every_form_is_within_its_bound(form: str, m: int, n: int, k: int) -> None:
    problem = problem_of(form, m, n, k, bias=(m + n) % 2 == 0)
    data = random_layer(problem, torch.Generator().manual_seed(n + k))
    out = kernel_of(problem, data)(data.x, data.bias)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous()
    assert ratio(problem, data, out) <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("output", ["bf16", "f16", "f32"])
def test_integer_data_is_bit_equal_to_float64(form: str, output: str) -> None:
    problem = problem_of(form, 19, 140, 600, output=output, bias=True)
    data = exact_layer(problem, torch.Generator().manual_seed(3))
    ref, magnitude = reference64(problem, data.tensors, data.x, data.bias, True)
    assert magnitude.max() < EXACT_LIMIT
    assert ref.count_nonzero() > ref.numel() / 2
    out = kernel_of(problem, data)(data.x, data.bias)
    assert torch.equal(out.double(), ref.to(out.dtype).double())


@pytest.mark.parametrize("given", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("output", ["bf16", "f16", "f32"])
def test_every_pair_of_dtypes_is_within_its_bound(given: str, output: str) -> None:
    problem = problem_of("block-f32", 5, 48, 200, input=given, output=output, bias=True)
    data = random_layer(problem, torch.Generator().manual_seed(5))
    out = kernel_of(problem, data)(data.x, data.bias)
    assert ratio(problem, data, out) <= 1
    assert ratio(problem, data, (out.double() * 1.02).to(out.dtype)) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_bias_of_any_float_dtype_is_added_once(dtype: torch.dtype) -> None:
    problem = problem_of("w8a16-tensor", 3, 8, 16, output="f32")
    data = random_layer(problem, torch.Generator().manual_seed(6))
    kernel = kernel_of(problem, data)
    bias = torch.arange(8, dtype=dtype) * 1000
    assert torch.equal(kernel(data.x, bias), kernel(data.x, None) + bias.float())


def test_pieces_of_the_weight_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of("block-f32", 4, 300, 256, bias=True, output="f32")
    data = random_layer(problem, torch.Generator().manual_seed(7))
    whole = kernel_of(problem, data)(data.x, data.bias)
    monkeypatch.setattr(reference, "ELEMENTS_AT_ONCE", 7 * 256)
    assert torch.allclose(kernel_of(problem, data)(data.x, data.bias), whole, rtol=1e-5, atol=1e-5)


def test_nan_in_a_row_of_x_spoils_that_row_alone() -> None:
    problem = problem_of("block-f32", 3, 20, 256)
    data = random_layer(problem, torch.Generator().manual_seed(8))
    data.x[1, 40] = torch.nan
    assert kernel_of(problem, data)(data.x, None).isnan().any(1).tolist() == [False, True, False]


def test_nan_in_a_row_of_the_weight_spoils_that_column_alone() -> None:
    problem = problem_of("channel-token-dynamic", 3, 4, 64)
    data = random_layer(problem, torch.Generator().manual_seed(9))
    data.tensors["weight"].view(torch.uint8)[2, 5] = 0xFF
    assert kernel_of(problem, data)(data.x, None).isnan().any(0).tolist() == [False, False, True, False]


def test_the_layer_is_left_as_it_was() -> None:
    problem = problem_of("channel-token-dynamic", 3, 4, 64)
    data = random_layer(problem, torch.Generator().manual_seed(10))
    before = {name: tensor.clone() for name, tensor in data.tensors.items()}
    x = data.x.clone()
    kernel_of(problem, data)(data.x, None)
    assert torch.equal(data.x, x)
    for name, tensor in before.items():
        assert torch.equal(data.tensors[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_a_static_layer_without_its_scale_is_refused() -> None:
    problem = problem_of("tensor-tensor-static", 2, 4, 16)
    data = random_layer(problem, torch.Generator().manual_seed(11))
    del data.tensors["input_scale"]
    with pytest.raises(KernelInputError, match="input_scale: static scaling needs it"):
        kernel_of(problem, data)(data.x, None)


def test_a_scale_of_another_shape_is_refused() -> None:
    problem = problem_of("block-f32", 2, 256, 256)
    data = random_layer(problem, torch.Generator().manual_seed(12))
    kernel = kernel_of(replace(problem, weight_block=(64, 64)), data)
    with pytest.raises(KernelInputError, match=r"weight_scale: must fit granularity block.*found shape \[2, 2\]"):
        kernel(data.x, None)


@pytest.mark.parametrize("given", ["bf16", "f32"])
@pytest.mark.parametrize("output", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("m", [1, 17])
def test_mx_emulation_is_within_its_bound_and_exact_on_integers(given: str, output: str, m: int) -> None:
    problem = problem_of("mx-mx", m, 50, 96, input=given, output=output, bias=True)
    data = random_layer(problem, torch.Generator().manual_seed(13))
    out = torch_mxfp8_emulation.Kernel(problem, **data.tensors)(data.x, data.bias)
    assert ratio(problem, data, out, quantized=False, kind="mma_f32") <= 1
    assert ratio(problem, data, out, quantized=True, kind="mma_f32") > 1
    exact = exact_layer(problem, torch.Generator().manual_seed(14))
    ref, magnitude = reference64(problem, exact.tensors, exact.x, exact.bias, False)
    assert magnitude.max() < EXACT_LIMIT
    out = torch_mxfp8_emulation.Kernel(problem, **exact.tensors)(exact.x, exact.bias)
    assert torch.equal(out.double(), ref.to(out.dtype).double())


def test_a_process_that_allows_tf32_still_gets_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(8, 64), torch.randn(8, 64)
    exact = (a.double() @ b.double().t()).float()
    assert torch_matmul.keeps_float32(a.device)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not torch_matmul.keeps_float32(a.device)
        assert torch.equal(torch_matmul.product_f32(a, b), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch_matmul.keeps_float32(a.device)


def test_poison_beside_x_and_behind_the_weight_is_never_read() -> None:
    problem = problem_of("block-f32", 3, 10, 130)
    data = random_layer(problem, torch.Generator().manual_seed(15))
    storage = data.x.as_strided((4, 146), (146, 1))
    assert storage[3].isnan().all()
    assert storage[:, 130:].isnan().all()
    assert data.x.stride(0) == 146
    assert not kernel_of(problem, data)(data.x, None).isnan().any()
