"""torch.compile, export, fake and meta tensors: one opaque op, whose kernel is looked up when it runs."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_op import register
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer, stand_in, tensors


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True, **options), counter


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_layer_gives_the_bits_of_an_eager_one_for_any_number_of_rows(backend):
    module = layer(bias=True)
    with torch._inductor.config.patch(compile_threads=1):
        fast, counter = compiled(module, backend, dynamic=True)
        for m in (2, 3, 17, 64):
            assert torch.equal(fast(inputs(m, K)), module(inputs(m, K)))
        assert counter.frame_count == 1


def test_a_compiled_layer_takes_one_row():
    module = layer(bias=True)
    fast, _ = compiled(module, dynamic=True)
    assert torch.equal(fast(inputs(1, K)), module(inputs(1, K)))


@pytest.mark.parametrize("shape", [(2, 3, K), (K,), (0, K)])
def test_a_compiled_layer_takes_the_leading_dimensions_that_an_eager_one_takes(shape):
    module = layer(bias=True)
    fast, _ = compiled(module)
    assert torch.equal(fast(inputs(*shape)), module(inputs(*shape)))


def test_a_compiled_layer_takes_strided_inputs_and_inputs_that_want_a_gradient():
    module = layer()
    fast, _ = compiled(module)
    x = inputs(9, 2 * K)[:, ::2]
    assert torch.equal(fast(x), module(x))
    wanting = inputs(3, K).requires_grad_()
    out = fast(wanting)
    assert not out.requires_grad
    assert torch.equal(out, module(wanting))


def test_the_kernel_is_chosen_by_rows_when_the_graph_runs_not_when_it_is_traced(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(override=BY_ROWS)
    fast, counter = compiled(module, dynamic=True)
    found = [float(fast(inputs(m, K))[0, 0]) for m in (2, 9, 3, 64)]
    assert found == [1.0, 2.0, 1.0, 2.0]
    assert counter.frame_count == 1
    assert {kernel for kernel, _ in seen.calls} == {"cpu_fp8", "reference"}


def test_equal_layers_share_one_graph_and_each_computes_its_own_numbers():
    class Block(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.linear = layer(seed=seed)

        def forward(self, x):
            return self.linear(x * 2) + 1

    blocks = [Block(seed) for seed in range(10)]
    counter = CompileCounterWithBackend("aot_eager")
    for block in blocks:
        block.compile(backend=counter, fullgraph=True, dynamic=True)
    for block in blocks:
        assert torch.equal(block(inputs(3, K)), block.linear(inputs(3, K) * 2) + 1)
    assert counter.frame_count == 1


def test_a_compiled_layer_follows_its_state_dict():
    module = layer()
    fast, _ = compiled(module)
    before = fast(inputs(3, K))
    module.load_state_dict(layer(seed=5).state_dict())
    assert torch.equal(fast(inputs(3, K)), module(inputs(3, K)))
    assert not torch.equal(fast(inputs(3, K)), before)


def test_a_declared_output_dtype_is_kept_by_the_compiled_layer():
    fast, _ = compiled(layer(output="f32"))
    assert fast(inputs(3, K)).dtype == torch.float32


def test_compiled_autocast_casts_as_eager_autocast():
    module = layer()
    x = inputs(3, K, dtype=torch.float32)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    fast, _ = compiled(run)
    assert torch.equal(fast(x), run(x))
    assert torch.equal(run(x), module(x.bfloat16()))


def test_a_wrong_k_is_refused_at_tracing_with_the_wanted_k():
    fast, _ = compiled(layer())
    with pytest.raises(Exception, match=f"must be k = {K}"):
        fast(inputs(3, K + 1))


@pytest.mark.parametrize("shape", [(3, K), (2, 3, K), (K,), (0, K), (1, K)])
@pytest.mark.parametrize("output", [None, "f32"])
def test_the_fake_result_has_shape_strides_dtype_and_device_of_the_real_one(shape, output):
    module = layer(output=output)
    x = inputs(*shape)
    before = x.clone()
    real = register().op(x, module._handle, N, K, module._output)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = register().op(mode.from_tensor(x), mode.from_tensor(module._handle), N, K, module._output)
    for fact in ("shape", "dtype", "device"):
        assert getattr(fake, fact) == getattr(real, fact)
    assert fake.stride() == real.stride()
    assert torch.equal(x, before)
    assert real.data_ptr() != x.data_ptr() or not x.numel()


def test_a_graph_traced_for_another_layer_is_refused_when_it_runs():
    module = layer()
    with pytest.raises(KernelInputError, match=r"traced for n = 64 in torch\.bfloat16; the layer gives \[3, 192\]"):
        register().op(inputs(3, K), module._handle, 64, K)
    with pytest.raises(KernelInputError, match=r"traced for n = 192 in torch\.float32; .*bfloat16"):
        register().op(inputs(3, K), module._handle, N, K, torch.float32)


def test_an_exported_layer_is_one_op():
    module = layer()
    exported = torch.export.export(module, (inputs(3, K),))
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [register().op]


def test_a_subclass_of_tensor_goes_through_the_op_with_the_same_bits():
    module = layer()
    x = torch.nn.Parameter(inputs(3, K), requires_grad=False)
    assert torch.equal(module(x), module(x.data))


def test_fake_tensors_give_shape_and_dtype_without_running_a_kernel(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(output="f32")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = module(mode.from_tensor(inputs(2, 3, K)))
    assert (out.shape, out.dtype) == ((2, 3, N), torch.float32)
    assert seen.calls == []


def test_the_handle_of_a_layer_that_is_gone_is_refused():
    module = layer()
    handle = module._handle
    del module
    gc.collect()
    with pytest.raises(KernelInputError, match="no layer has this handle"):
        register().op(inputs(3, K), handle, N, K)


def test_a_handle_is_forgotten_with_its_layer():
    gc.collect()
    before = len(register().layers)
    kept = [layer() for _ in range(5)]
    assert len(register().layers) == before + 5
    kept.clear()
    gc.collect()
    assert len(register().layers) == before


# --- meta ---------------------------------------------------------------------------------------------------------


def meta_layer(**options):
    from kerneltable.run.linear import QuantLinear

    given = {key: tensor.to("meta") for key, tensor in tensors().items()}
    return QuantLinear.from_tensors("fp8_block_w8a8", given, **options)


@pytest.mark.parametrize(("output", "wanted"), [(None, torch.bfloat16), ("f32", torch.float32)])
def test_a_layer_on_meta_gives_a_result_on_meta_and_binds_no_kernel(monkeypatch, output, wanted):
    seen = stand_in(monkeypatch)
    module = meta_layer(output=output)
    out = module(torch.empty(2, 5, K, dtype=torch.bfloat16, device="meta"))
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, N), wanted, "meta")
    assert seen.packed == seen.calls == []


def test_a_layer_on_meta_refuses_what_the_layer_would_refuse():
    module = meta_layer()
    with pytest.raises(KernelInputError, match="x is on cpu, the layer on meta"):
        module(inputs(3, K))
    with pytest.raises(KernelInputError, match=f"must be k = {K}"):
        module(torch.empty(3, K + 1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_built_on_meta_and_filled_later_computes_like_one_built_in_place(assign):
    module = meta_layer(kernel="reference")
    if not assign:
        module.to_empty(device="cpu")
    module.load_state_dict(tensors(), assign=assign)
    assert module.selection.device.platform == "cpu"
    assert torch.equal(module(inputs(3, K)), layer()(inputs(3, K)))
