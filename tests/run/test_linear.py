"""QuantLinear: shapes, strides, dtypes, devices, and what torch does to modules."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from kerneltable.errors import KernelInputError, LayerError, NoKernelError, ProblemError
from kerneltable.run.linear import QuantLinear
from kerneltable.run.oracle import error_over_bound, reference64
from kerneltable.select import device
from kerneltable.table import load_table

E4M3 = torch.float8_e4m3fn
N, K = 192, 256


@pytest.fixture(scope="module")
def table():
    return load_table()


@pytest.fixture
def layer(table):
    return QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, kernel="reference")


def tensors(n: int = N, k: int = K, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator).to(E4M3)
    scale = torch.rand(-(-n // 128), -(-k // 128), generator=generator) + 0.5
    return {"weight": weight, "weight_scale": scale}


def inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_the_result_is_within_its_bound(table, layer):
    x = inputs(17, K)
    reference, magnitude = reference64(layer.selection.problem, layer.tensors(), x, None, True)
    out = layer(x)
    row = table.kernels[layer.kernel]
    assert error_over_bound(out, reference, magnitude, K, "bf16", row.numerics.accumulator) <= 1
    assert error_over_bound(out * 2, reference, magnitude, K, "bf16", row.numerics.accumulator) > 1


def test_the_route_decides_when_nothing_is_forced(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table)
    route = [step.kernel for step in table.routes["fp8_block_w8a8", "cpu"].steps]
    assert layer.kernel in route
    assert layer.selection.kernel in route
    assert {c.kernel for c in layer.selection.candidates} == set(route)
    assert layer.kernel in layer.explain()
    assert layer.problem.n == N


@pytest.mark.parametrize("shape", [(K,), (1, K), (7, K), (2, 3, K), (2, 1, 3, K), (0, K), (2, 0, K)])
def test_any_leading_dimensions_come_back(layer, shape):
    out = layer(inputs(*shape))
    assert out.shape == (*shape[:-1], N)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out.float()).all()
    if out.numel():
        flat = layer(inputs(*shape).reshape(-1, K))
        assert torch.equal(out.reshape(-1, N), flat)


STRIDED = {
    "padded rows": lambda: inputs(9, K + 16)[:, :K],
    "every other column": lambda: inputs(9, 2 * K)[:, ::2],
    "transposed": lambda: inputs(K, 9).t(),
    "one row for all": lambda: inputs(1, K).expand(9, K),
    "one number for all": lambda: inputs(1, 1).expand(9, K),
    "off by two bytes": lambda: inputs(9 * K + 1)[1:].reshape(9, K),
    "a slice of batches": lambda: inputs(4, 3, K)[1::2],
    "swapped batches": lambda: inputs(4, 3, K).transpose(0, 1),
}


@pytest.mark.parametrize("kind", STRIDED)
@pytest.mark.parametrize("kernel", ["reference", None])
def test_a_strided_input_gives_the_bits_of_its_contiguous_copy(table, kernel, kind):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, kernel=kernel)
    x = STRIDED[kind]()
    assert torch.equal(layer(x), layer(x.contiguous().clone()))


def test_the_input_is_not_changed(layer):
    x = inputs(5, K)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_another_dtype_is_bound_at_its_first_call_and_is_the_result_dtype(layer, dtype):
    assert layer(inputs(3, K, dtype=dtype)).dtype == dtype
    assert layer(inputs(0, K, dtype=dtype)).dtype == dtype


def test_a_declared_output_dtype_is_kept_for_every_input(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, output="f32")
    for dtype in (torch.bfloat16, torch.float16):
        assert layer(inputs(3, K, dtype=dtype)).dtype == torch.float32
        assert layer(inputs(0, K, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bias_is_added_once(table, dtype):
    bias = torch.linspace(-2, 2, N).to(dtype)
    with_bias = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), bias, table, output="f32", kernel="reference")
    without = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), None, table, output="f32", kernel="reference")
    x = inputs(5, K)
    torch.testing.assert_close(with_bias(x) - without(x), bias.float().expand(5, N), rtol=0, atol=2.0**-15)


@pytest.mark.parametrize(("n", "k"), [(0, K), (N, 0), (0, 0)])
def test_a_layer_without_numbers_gives_zeros_plus_bias(table, n, k):
    bias = torch.full((n,), 3.0)
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(n, k), bias, table)
    out = layer(torch.empty(2, 5, k, dtype=torch.bfloat16))
    assert out.shape == (2, 5, n)
    assert out.dtype == torch.bfloat16
    assert (out == 3.0).all()


@pytest.mark.parametrize("x", [torch.ones(3, K + 1), torch.ones(K, 3), torch.tensor(1.0)])
def test_a_wrong_k_is_refused(layer, x):
    with pytest.raises(KernelInputError, match=f"last dimension of x must be k = {K}"):
        layer(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_an_input_of_another_dtype_is_refused_with_the_next_step(layer, dtype):
    with pytest.raises(KernelInputError, match=r"x must be bf16, f16 or f32; found torch\..*convert"):
        layer(torch.ones(3, K).to(dtype))


def test_an_input_on_another_device_is_refused(layer):
    with pytest.raises(KernelInputError, match=r"x is on meta, the layer on cpu"):
        layer(torch.ones(3, K, device="meta"))


def test_an_input_dtype_that_no_kernel_takes_is_refused_with_every_refusal():
    override = "override: 1\nkernels:\n" + "".join(
        f"  {kernel}: {{accepts: {{input: [bf16]}}}}\n"
        for kernel in {step.kernel for step in load_table().routes["fp8_block_w8a8", "cpu"].steps}
    )
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=load_table(overrides=[("bf16 only", override)]))
    layer(inputs(3, K))
    with pytest.raises(NoKernelError, match=r"reference: accepts.input: wanted .*bf16.*found f16"):
        layer(inputs(3, K, dtype=torch.float16))


def test_an_input_that_wants_a_gradient_gives_a_detached_result(layer):
    x = inputs(3, K).requires_grad_()
    out = layer(x)
    assert not out.requires_grad
    assert torch.equal(out, layer(x.detach()))
    assert list(layer.parameters()) == []


def test_inference_mode_gives_the_same_bits(layer):
    x = inputs(3, K)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(inside, layer(x))


# --- Devices ------------------------------------------------------------------------------------------------------


def test_a_layer_for_a_device_by_name_can_be_asked_but_not_called(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, device="h200")
    assert layer.kernel in {step.kernel for step in table.routes["fp8_block_w8a8", "cuda"].steps}
    assert layer.selection.device.platform == "cuda"
    assert "sm90" in layer.explain()
    with pytest.raises(KernelInputError, match=r"bound for h200 \(cuda\) and its tensors are on cpu"):
        layer(inputs(3, K))


def test_a_device_may_be_given_as_a_device(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, device=device("a100", table))
    assert layer.selection.device.architecture == "sm80"


def test_an_unknown_device_or_scheme_is_refused_by_name(table):
    with pytest.raises(ProblemError, match="h2oo"):
        QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, device="h2oo")
    with pytest.raises(ProblemError, match=r"unknown scheme 'fp8_blok'; the table has .*fp8_block_w8a8"):
        QuantLinear.from_tensors("fp8_blok", tensors(), table=table)


def test_an_unknown_output_dtype_is_refused(table):
    with pytest.raises(ProblemError):
        QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, output="f64")


def test_a_forced_kernel_that_refuses_is_an_error(table):
    with pytest.raises(NoKernelError, match="torch_scaled_mm_block"):
        QuantLinear.from_tensors(
            "fp8_block_w8a8", tensors(), table=table, kernel="torch_scaled_mm_block", device="a100"
        )
    with pytest.raises(NoKernelError, match="torch_scaled_mm_block: runs_on"):
        QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table, kernel="torch_scaled_mm_block")


def test_a_block_that_only_the_reference_takes_is_computed_by_it(table):
    given = {"weight": tensors()["weight"], "weight_scale": torch.rand(6, 8) + 0.5}
    layer = QuantLinear.from_tensors("fp8_block_w8a8", given, table=table, weight_block=(32, 32), kernel="reference")
    x = inputs(3, K)
    reference, magnitude = reference64(layer.selection.problem, layer.tensors(), x, None, True)
    assert error_over_bound(layer(x), reference, magnitude, K, "bf16", "f32") <= 1


# --- state_dict, .to, copies, threads -----------------------------------------------------------------------------


def test_the_state_dict_gives_the_checkpoint_back_under_its_own_names(table):
    given = tensors()
    aliased = {"weight": given["weight"], "weight_scale_inv": given["weight_scale"], "bias": torch.ones(N)}
    state = QuantLinear.from_tensors("fp8_block_w8a8", aliased, table=table).state_dict()
    assert set(state) == {"weight", "weight_scale_inv", "bias"}
    assert torch.equal(state["weight"].view(torch.uint8), given["weight"].view(torch.uint8))
    assert torch.equal(state["weight_scale_inv"], given["weight_scale"])


def test_a_uint8_scale_stays_uint8(table):
    given = {"weight": tensors()["weight"], "weight_scale": torch.full((N, K // 32), 127, dtype=torch.uint8)}
    layer = QuantLinear.from_tensors("mxfp8", given, table=table)
    assert layer.state_dict()["weight_scale"].dtype == torch.uint8
    assert torch.isfinite(layer(inputs(3, K)).float()).all()


def test_loading_other_tensors_packs_again(table, layer):
    x = inputs(3, K)
    before = layer(x)
    other = QuantLinear.from_tensors("fp8_block_w8a8", tensors(seed=5), table=table, kernel="reference")
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    assert not torch.equal(layer(x), before)


def test_loading_bad_scales_or_another_dtype_is_refused(layer):
    state = layer.state_dict()
    with pytest.raises(LayerError, match="finite and above 0"):
        layer.load_state_dict(state | {"weight_scale": torch.zeros_like(state["weight_scale"])})
    with pytest.raises(LayerError, match=r"weight must be torch\.float8_e4m3fn"):
        layer.load_state_dict(state | {"weight": state["weight"].float()})


@pytest.mark.parametrize(
    "change", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.cpu()]
)
def test_a_module_wide_change_of_dtype_leaves_the_tensors_as_they_came(table, change):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), torch.ones(N), table)
    x = inputs(3, K)
    before = layer(x)
    change(torch.nn.Sequential(layer))
    assert layer.weight.dtype == E4M3
    assert layer.weight_scale.dtype == layer.bias.dtype == torch.float32
    assert torch.equal(layer(x), before)


def test_a_deep_copy_computes_the_same_and_shares_no_tensor(layer):
    twin = copy.deepcopy(torch.nn.Sequential(layer))[0]
    x = inputs(3, K)
    before = layer(x)
    assert torch.equal(twin(x), before)
    assert twin.table is layer.table
    twin.weight.view(torch.uint8).zero_()
    assert torch.equal(layer(x), before)
    assert twin.kernel == layer.kernel


def test_printing_a_layer_names_its_kernel(layer):
    assert "fp8_block_w8a8, n=192, k=256, bias=False, kernel=reference" in repr(layer)


def test_threads_that_call_a_fresh_dtype_at_once_get_equal_bits(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table)
    x = inputs(5, K, dtype=torch.float16)
    together = threading.Barrier(8)
    found = []

    def call():
        together.wait()
        found.append(layer(x))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(out, found[0]) for out in found)


def test_a_scale_of_powers_of_two_comes_back_through_a_state_dict(table):
    codes = torch.randint(110, 130, (2, 2), dtype=torch.uint8)
    given = tensors() | {"weight_scale": codes.view(torch.float8_e8m0fnu)}
    layer = QuantLinear.from_tensors("fp8_block_w8a8", given, table=table)
    other = QuantLinear.from_tensors(
        "fp8_block_w8a8", tensors() | {"weight_scale": codes.clone().fill_(127)}, table=table
    )
    with pytest.raises(LayerError, match="weight_scale must be"):
        other.load_state_dict(layer.state_dict())
    same = copy.deepcopy(layer)
    same.load_state_dict(layer.state_dict())
    assert torch.equal(same.weight_scale.view(torch.uint8), codes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_layer_moved_to_a_gpu_is_bound_for_it_and_packed_again(table):
    layer = QuantLinear.from_tensors("fp8_block_w8a8", tensors(), table=table)
    x = inputs(17, K)
    layer(x)
    layer.cuda()
    assert layer.selection.device.platform in ("cuda", "rocm")
    row = table.kernels[layer.kernel]
    quantizes = row.kind in ("native", "reference")
    reference, magnitude = reference64(layer.selection.problem, layer.tensors(), x.cuda(), None, quantizes)
    out = layer(x.cuda())
    assert error_over_bound(out, reference, magnitude, K, "bf16", row.numerics.accumulator) <= 1
    with pytest.raises(KernelInputError, match="x is on cpu"):
        layer(x)
