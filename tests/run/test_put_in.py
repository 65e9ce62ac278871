"""Tensors put in a layer after it was built: by assignment, state dict and functional_call, and through their .data."""

from __future__ import annotations

import pytest
import torch

import kerneltable
from kerneltable.errors import LayerError
from kerneltable.run.ledger import shared_ledger
from kerneltable.run.linear import QuantLinear
from kerneltable.run.oracle import error_over_bound, reference64

N, K = 192, 256
E4M3 = torch.float8_e4m3fn


def tensors(seed: int = 0, n: int = N, k: int = K) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator).to(E4M3)
    return {"weight": weight, "weight_scale": torch.rand(n, 1, generator=generator) + 0.5}


def layer(seed: int = 0, **options) -> QuantLinear:
    made = QuantLinear.from_tensors("w8a16_fp8", tensors(seed), **options)
    made(inputs())
    return made


def inputs() -> torch.Tensor:
    return torch.randn(4, K, generator=torch.Generator().manual_seed(9)).bfloat16()


def is_right(module: QuantLinear) -> bool:
    """Whether a layer computes with the tensors that it has now."""
    ref, magnitude = reference64(module.selection.problem, module.tensors(), inputs(), None, False)
    row = module.table.kernels[module.kernel]
    return error_over_bound(module(inputs()), ref, magnitude, K, "bf16", row.numerics.accumulator) <= 1


def nothing_is_aside() -> bool:
    return not shared_ledger().report().set_aside


MISTAKES = {
    "another's weight": ("weight", torch.zeros(64, K).to(E4M3), r"weight must be \[192, 256\].*found \[64, 256\]"),
    "a wider weight": ("weight", torch.zeros(N, 2 * K).to(E4M3), r"weight must be \[192, 256\].*found \[192, 512\]"),
    "a plain weight": ("weight", torch.zeros(N, K), r"weight must be float8_e4m3fn; found float32"),
    "one scale": ("weight_scale", torch.ones(1), r"weight_scale.*must be \[192\] or \[192, 1\].*found \[1\]"),
    "scales in f16": ("weight_scale", torch.ones(N, 1).half(), r"weight_scale.*must be .*found float16"),
    "scales in int": ("weight_scale", torch.ones(N, 1, dtype=torch.int32), r"weight_scale.*must be .*found int32"),
    "scales in bf16": ("weight_scale", torch.ones(N, 1).bfloat16(), r"weight_scale must be f32.*found bf16"),
    "bad scales": ("weight_scale", torch.full((N, 1), torch.nan), r"weight_scale\[0, 0\] must be finite"),
    "scales on meta": ("weight_scale", torch.ones(N, 1, device="meta"), r"one device; found .*weight_scale on meta"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_tensor_is_an_error_of_its_layer_and_disables_no_other_layer(mistake):
    name, value, found = MISTAKES[mistake]
    good, bad, own = layer(seed=1), layer(seed=2), tensors(2)[name]
    setattr(bad, name, value)
    with pytest.raises(LayerError, match=found):
        bad(inputs())
    assert nothing_is_aside()
    assert is_right(good)
    setattr(bad, name, own)
    assert is_right(bad)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_tensor_of_a_functional_call_is_an_error_of_that_call(mistake):
    name, value, found = MISTAKES[mistake]
    module = layer()
    with pytest.raises(LayerError, match=found):
        torch.func.functional_call(module, {name: value}, (inputs(),))
    assert nothing_is_aside()
    assert is_right(module)


def test_trusted_scales_may_be_replaced_by_others_that_are_not_finite():
    module = layer(trusted_scales=True)
    module.weight_scale = torch.full((N, 1), torch.nan)
    assert module(inputs()).isnan().all()


def test_scales_of_one_number_less_in_their_shape_are_the_same_scales():
    module = layer()
    module.weight_scale = module.weight_scale.reshape(N)
    assert is_right(module)


def test_tensors_loaded_in_parts_onto_another_device_are_packed_when_the_last_is_there():
    good, module, other = layer(seed=3), layer(seed=3).to("meta"), tensors(4)
    module.load_state_dict({"weight": other["weight"]}, strict=False, assign=True)
    with pytest.raises(LayerError, match=r"one device; found weight on cpu, weight_scale on meta"):
        module(inputs())
    assert nothing_is_aside()
    module.load_state_dict({"weight_scale": other["weight_scale"]}, strict=False, assign=True)
    assert is_right(module)
    assert is_right(good)


def test_a_scale_on_meta_in_a_state_dict_is_an_error_at_the_call():
    module = layer()
    module.load_state_dict({"weight_scale": torch.ones(N, 1, device="meta")}, strict=False, assign=True)
    with pytest.raises(LayerError, match="one device"):
        module(inputs())
    assert nothing_is_aside()


def test_a_table_that_takes_over_is_not_blamed_for_a_wrong_tensor():
    module = layer()
    module.weight = torch.zeros(64, K).to(E4M3)
    with pytest.raises(LayerError, match=r"weight must be \[192, 256\]"):
        module.rebind(module.table)
    assert nothing_is_aside()


def transposed(weight: torch.Tensor) -> torch.Tensor:
    return weight.t().contiguous().t()


def sliced(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight.view(torch.uint8)] * 2, 1).view(E4M3)[:, :K]


def others(weight: torch.Tensor) -> torch.Tensor:
    return tensors(7)["weight"]


@pytest.mark.parametrize("change", [transposed, sliced, others])
@pytest.mark.parametrize("kernel", ["cpu_fp8", "reference", None])
def test_other_memory_through_the_data_of_a_weight_is_packed_before_it_is_used(change, kernel):
    module = layer(kernel=kernel)
    module.weight.data = change(module.weight.data)
    assert is_right(module)


def test_other_memory_through_the_data_of_weight_and_scale_is_used_of_both():
    module = layer()
    module.weight.data, module.weight_scale.data = tensors(7).values()
    assert is_right(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_dtype_of_x_sees_other_memory(dtype):
    module = layer()
    module(inputs().to(dtype))
    module.weight_scale.data = module.weight_scale.data * 2
    doubled = module(inputs().to(dtype))
    assert torch.equal(doubled, 2 * layer()(inputs().to(dtype)))


@pytest.mark.parametrize("found", [torch.empty(0, dtype=E4M3), torch.zeros(N, K), torch.zeros(N, 16).to(E4M3)])
def test_memory_that_is_no_such_weight_is_an_error_of_the_layer(found):
    module = layer()
    kept, module.weight.data = module.weight.data, found
    with pytest.raises(LayerError, match="weight must be"):
        module(inputs())
    assert nothing_is_aside()
    module.weight.data = kept
    assert is_right(module)


@pytest.mark.parametrize("kernel", ["cpu_fp8", "reference", None])
@pytest.mark.parametrize("left", [0, 64])
def test_memory_that_was_freed_is_an_error_until_it_is_back(kernel, left):
    module, whole = layer(kernel=kernel), tensors()["weight"]
    module.weight.untyped_storage().resize_(left)
    with pytest.raises(LayerError, match=rf"weight.*memory was freed \({left} bytes are left of {N * K}\)"):
        module(inputs())
    assert nothing_is_aside()
    module.weight.untyped_storage().resize_(N * K)
    module.weight.copy_(whole)
    assert is_right(module)


def test_another_shape_in_place_leaves_the_kernels_with_the_weight_that_they_packed():
    module = layer()
    before = module(inputs())
    module.weight.data = module.weight.data[:8]
    assert torch.equal(module(inputs()), before)
    with pytest.raises(LayerError, match=r"found \[8, 256\]"):
        module.repack()


# --- Parameters, None, deletions, parametrizations ----------------------------------------------------------------


def given_as_parameter(name: str, seed: int = 5) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensors(seed)[name], requires_grad=False)


@pytest.mark.parametrize("put", [setattr, QuantLinear.register_parameter], ids=["assigned", "registered"])
@pytest.mark.parametrize("name", ["weight", "weight_scale"])
def test_a_parameter_in_the_place_of_a_tensor_becomes_a_buffer(put, name):
    module = layer()
    put(module, name, given_as_parameter(name))
    assert is_right(module)
    assert list(module.parameters()) == []
    assert list(module.state_dict()) == ["weight", "weight_scale"]
    assert torch.equal(module.state_dict()[name].float(), tensors(5)[name].float())
    assert is_right(module.cpu())


def test_a_parameter_with_a_gradient_becomes_a_buffer_without():
    module = layer()
    module.weight_scale = torch.nn.Parameter(tensors(5)["weight_scale"])
    assert not module.weight_scale.requires_grad
    assert is_right(module)


def test_a_bias_may_be_registered_as_a_parameter():
    module = layer()
    module.register_parameter("bias", torch.nn.Parameter(torch.ones(N)))
    plain = layer()
    plain.bias = torch.ones(N)
    assert torch.equal(module(inputs()), plain(inputs()))
    assert list(module.parameters()) == []


def test_other_attributes_and_parameters_are_torch_s_own():
    module = layer()
    module.marks = torch.nn.Parameter(torch.ones(1))
    module.register_parameter("more", None)
    assert [name for name, _ in module.named_parameters()] == ["marks"]
    del module.marks
    assert not hasattr(module, "marks")
    assert is_right(module)


@pytest.mark.parametrize("name", ["weight", "weight_scale"])
def test_none_in_the_place_of_a_tensor_is_an_error_and_the_layer_keeps_what_it_has(name):
    module = layer()
    with pytest.raises(LayerError, match=rf"layer: {name} must be a tensor; found None"):
        setattr(module, name, None)
    assert is_right(module)


@pytest.mark.parametrize("name", ["weight", "weight_scale", "bias"])
def test_a_tensor_that_is_deleted_or_parametrized_is_an_error_and_the_layer_keeps_it(name):
    module = layer()
    module.bias = torch.zeros(N)
    with pytest.raises(LayerError, match=rf"{name} must stay a buffer of the layer"):
        delattr(module, name)
    with pytest.raises(LayerError, match=rf"{name} must stay a buffer of the layer"):
        torch.nn.utils.parametrize.register_parametrization(module, name, torch.nn.Identity())
    assert is_right(module)
    assert set(module.state_dict()) == {"weight", "weight_scale", "bias"}
    assert type(module) is QuantLinear


def test_an_assigned_weight_gives_the_op_a_new_handle():
    module = layer()
    before = module._handle
    module.weight = tensors(5)["weight"]
    assert module._handle is not before


# --- Hooks of state dicts, replicas -------------------------------------------------------------------------------


def test_a_hook_that_renames_keys_before_loading_is_heard_for_any_name_of_a_tensor():
    module = layer()

    def rename(module, state, prefix, *_):
        state[prefix + "weight"] = state.pop(prefix + "codes")
        state[prefix + "weight_scale_inv"] = state.pop(prefix + "scales")

    module.register_load_state_dict_pre_hook(rename)
    for seed in (5, 6):
        other = tensors(seed)
        module.load_state_dict({"codes": other["weight"], "scales": other["weight_scale"]})
        assert is_right(module)
        assert torch.equal(module.weight_scale, other["weight_scale"])


def test_a_hook_that_converts_a_tensor_before_loading_escapes_no_check():
    module, own, calls = layer(), tensors(), []

    def convert(module, state, prefix, *_):
        calls.append(prefix)
        state[prefix + "weight"] = state[prefix + "weight"].float()

    handle = module.register_load_state_dict_pre_hook(convert)
    with pytest.raises(LayerError, match=r"weight must be torch\.float8_e4m3fn; found torch\.float32"):
        torch.nn.ModuleDict({"up": module}).load_state_dict({f"up.{name}": t for name, t in tensors(5).items()})
    assert calls == ["up."]
    assert torch.equal(module.weight.float(), own["weight"].float())
    handle.remove()
    module.load_state_dict(tensors(5))
    assert is_right(module)


def test_a_replica_computes_where_its_tensors_are_though_its_twin_was_bound_elsewhere():
    module = layer()
    replica = module._replicate_for_data_parallel()
    for name in ("weight", "weight_scale"):
        setattr(replica, name, getattr(module, name).clone())
    replica._device = kerneltable.device("h200", module.table)  # of the place where it was made; bound here since then
    assert next(iter(replica._ready.values())).place == replica.place
    assert is_right(replica)
