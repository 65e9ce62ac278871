"""A bias that is assigned to a layer: one that fits is added, one that does not is refused and no kernel's fault."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import kerneltable
from kerneltable.errors import KernelInputError, LayerError, NoKernelError
from kerneltable.model import Problem
from kerneltable.run.ledger import Ledger
from kerneltable.run.place import device_for
from kerneltable.run.plan import bind
from kerneltable.table import load_table
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer, stand_in, tensors
from run.packing_stand_ins import given, once, packing

BARE = "override: 1\nkernels:\n  cpu_fp8: {accepts: {bias: [false]}}\n"
WRONG = {
    "short": torch.ones(5),
    "one": torch.ones(1),
    "scalar": torch.tensor(1.0),
    "column": torch.ones(N, 1),
    "long": torch.ones(N + 1),
    "whole numbers": torch.ones(N, dtype=torch.int32),
    "double": torch.ones(N, dtype=torch.float64),
}
EVERY_KERNEL = pytest.mark.parametrize("override", [None, BY_ROWS], ids=["reference", "the route"])


def new_bias(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-3, 5, N).to(dtype)


def untouched() -> bool:
    found = kerneltable.report()
    return not found.set_aside and not found.failures


# --- A bias that does not fit -------------------------------------------------------------------------------------


@EVERY_KERNEL
@pytest.mark.parametrize("bias", [*WRONG.values(), [1.0] * N, torch.nn.Linear(1, 1)], ids=[*WRONG, "list", "module"])
def test_a_wrong_bias_is_refused_where_it_is_assigned_and_the_layer_keeps_its_own(bias, override):
    module = layer(override=override, bias=True, name="up_proj")
    before, held = module(inputs(3, K)), module.bias
    with pytest.raises(LayerError, match=r"up_proj: bias must be \[192\] in float32.*; found .*; give the bias of"):
        module.bias = bias
    assert module.bias is held
    assert torch.equal(module(inputs(3, K)), before)
    assert untouched()


PAST_THE_ATTRIBUTE = {
    "register_buffer": lambda module, bias: module.register_buffer("bias", bias),
    "buffers": lambda module, bias: module._buffers.update(bias=bias),
    "in place": lambda module, bias: setattr(module.bias, "data", bias),
}


@EVERY_KERNEL
@pytest.mark.parametrize("put", PAST_THE_ATTRIBUTE.values(), ids=PAST_THE_ATTRIBUTE)
def test_a_wrong_bias_that_got_past_the_attribute_is_refused_at_the_call_and_is_no_kernels_fault(put, override):
    module = layer(override=override, bias=True)
    before = module(inputs(3, K))
    put(module, torch.ones(5))
    for x in (inputs(3, K), inputs(7, 2, K), inputs(0, K), inputs(3, K, dtype=torch.float16)):
        with pytest.raises(LayerError, match=r"bias must be \[192\].*found float32 \[5\]"):
            module(x)
    assert untouched()
    module.bias = torch.linspace(-1, 1, N)
    assert torch.equal(module(inputs(3, K)), before)
    module.bias = None
    assert torch.equal(module(inputs(3, K)), layer(override=override)(inputs(3, K)))
    assert untouched()


@pytest.mark.parametrize("put", PAST_THE_ATTRIBUTE.values(), ids=PAST_THE_ATTRIBUTE)
def test_a_wrong_bias_is_refused_before_anything_runs(put, monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(bias=True).prepare(m=3)
    module(inputs(3, K))
    seen.calls.clear()
    put(module, torch.ones(N - 1))
    for ask in (lambda: module(inputs(3, K)), lambda: module.prepare(m=3), lambda: module.kernel_for(3)):
        with pytest.raises(LayerError, match="bias"):
            ask()
    assert seen.calls == []


def test_a_bias_on_another_device_is_refused_at_the_call_until_the_layer_is_there():
    module = layer(bias=True)
    before = module(inputs(3, K))
    module.bias = torch.ones(N, device="meta")
    with pytest.raises(LayerError, match=r"bias is on meta, weight on cpu; move both to one device"):
        module(inputs(3, K))
    assert untouched()
    module.to("meta")
    assert module(torch.empty(2, K, dtype=torch.bfloat16, device="meta")).is_meta
    again = layer(bias=True)
    again.bias = torch.ones(N, device="meta")
    again.bias = torch.linspace(-1, 1, N)
    assert torch.equal(again(inputs(3, K)), before)


def test_a_plan_that_is_called_past_its_layer_takes_no_wrong_bias_for_its_kernels_fault():
    table, ledger = load_table(), Ledger()
    here = device_for(torch.device("cpu"), table)
    ask = {bias: Problem("fp8_block_w8a8", n=N, k=K, bias=bias) for bias in (True, False)}
    plans = {bias: bind(table, here, problem, tensors(), ledger=ledger) for bias, problem in ask.items()}
    with pytest.raises(LayerError, match=r"n=192 k=256.*bias must be \[192\]"):
        plans[True](inputs(3, K), torch.ones(5))
    with pytest.raises(KernelInputError, match=r"made for no bias; found \[192\]"):
        plans[False](inputs(3, K), torch.ones(N))
    assert not ledger.report().failures
    plans[True](inputs(3, K), torch.ones(N))


# --- A bias that fits ---------------------------------------------------------------------------------------------


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("had", [True, False], ids=["instead of one", "where there was none"])
def test_a_bias_that_fits_is_added_from_the_next_call_on(override, dtype, had):
    module = layer(override=override, bias=had)
    module(inputs(3, K))
    module.bias = new_bias(dtype)
    whole = {**tensors(), "bias": new_bias(dtype)}
    wanted = kerneltable.QuantLinear.from_tensors(
        "fp8_block_w8a8", whole, table=module.table, kernel="reference" if override is None else None
    )
    for x in (inputs(3, K), inputs(3, K), inputs(2, 4, K), inputs(0, K), inputs(3, K, dtype=torch.float16)):
        assert torch.equal(module(x), wanted(x))
    module.bias = None
    assert torch.equal(module(inputs(3, K)), layer(override=override)(inputs(3, K)))
    assert untouched()


def test_another_bias_packs_nothing_again_and_neither_does_one_that_was_put_in(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(override=BY_ROWS, bias=True)
    module(inputs(3, K))
    packed = list(seen.packed)
    module.bias = new_bias()
    module(inputs(3, K))
    module.register_buffer("bias", new_bias(torch.float16))
    module(inputs(3, K))
    torch.func.functional_call(module, {"bias": torch.zeros(N)}, (inputs(3, K),))
    assert seen.packed == packed


@pytest.mark.parametrize(
    "given_as", [torch.nn.Parameter, torch.nn.Buffer, lambda bias: bias.requires_grad_()], ids=["p", "b", "grad"]
)
def test_a_bias_is_a_buffer_without_gradient_in_whatever_form_it_is_assigned(given_as):
    module = layer(bias=True)
    module.bias = given_as(new_bias())
    wanted = layer(bias=True)
    wanted.bias = new_bias()
    out = module(inputs(3, K))
    assert torch.equal(out, wanted(inputs(3, K)))
    assert not out.requires_grad
    assert list(module.parameters()) == []
    assert torch.equal(module.state_dict()["bias"], new_bias())


def test_a_bias_that_is_changed_in_place_counts():
    module = layer(bias=True)
    module(inputs(3, K))
    module.bias.zero_()
    assert torch.equal(module(inputs(3, K)), layer()(inputs(3, K)))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("had", [True, False])
def test_a_copy_has_the_bias_of_now(again, had):
    module = layer(bias=had)
    module.bias = None if had else new_bias()
    twin = again(module)
    assert twin.problem.bias is not had
    assert torch.equal(twin(inputs(3, K)), module(inputs(3, K)))


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_dict_replaces_an_assigned_bias_and_wrong_ones_are_still_refused(assign):
    module = layer()
    module.bias = new_bias()
    module.load_state_dict(layer(bias=True).state_dict(), assign=assign)
    assert torch.equal(module(inputs(3, K)), layer(bias=True)(inputs(3, K)))
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        module.load_state_dict({**tensors(), "bias": torch.ones(5)}, assign=assign)
    assert torch.equal(module(inputs(3, K)), layer(bias=True)(inputs(3, K)))


def test_a_bias_assigned_to_a_layer_on_meta_moves_with_it():
    module = layer(bias=True).to("meta")
    module.bias = torch.empty(N, device="meta")
    module.to_empty(device="cpu")
    module.load_state_dict({**tensors(), "bias": torch.linspace(-1, 1, N)})
    assert torch.equal(module(inputs(3, K)), layer(bias=True)(inputs(3, K)))


def test_a_compiled_layer_adds_the_bias_of_now_and_no_graph_of_the_old_one_is_replayed():
    module = layer(bias=True)
    compiled = torch.compile(module, backend="eager")
    compiled(inputs(3, K))
    handle = module._handle
    for bias in (new_bias(), None):
        module.bias = bias
        assert torch.equal(compiled(inputs(3, K)), module(inputs(3, K)))
    assert module._handle.data_ptr() != handle.data_ptr()


# --- A bias that comes or goes ------------------------------------------------------------------------------------


def test_the_table_chooses_again_when_a_bias_comes_or_goes(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(override=BARE)
    marks = []
    for bias in (None, new_bias(), None):
        module.bias = bias
        assert module.problem.bias is (bias is not None)
        assert f"bias={bias is not None}" in repr(module)
        assert module.kernel == ("cpu_fp8" if bias is None else "reference")
        assert ("accepts.bias" in module.explain(verbose=True)) is (bias is not None)
        marks += [float(module(inputs(2, K, dtype=dtype))[0, 0]) for dtype in (torch.bfloat16, torch.float16)]
    assert marks == [1, 1, 2, 2, 1, 1]
    assert untouched()
    assert len(seen.packed) == 6


def test_a_forced_kernel_that_takes_no_bias_refuses_one_at_the_call_and_goes_on_without():
    module = layer(override=BARE, kernel="cpu_fp8")
    before = module(inputs(3, K))
    module.bias = new_bias()
    with pytest.raises(NoKernelError, match=r"accepts\.bias"):
        module(inputs(3, K))
    module.bias = None
    assert torch.equal(module(inputs(3, K)), before)
    assert untouched()


def test_another_table_decides_for_the_bias_of_now():
    module = layer(override=BARE)
    module.bias = new_bias()
    assert module.rebind(load_table(overrides=[("test", BARE)])).kernel == "reference"


def test_weights_that_were_released_stay_so_when_a_bias_comes_or_goes(monkeypatch):
    packing(monkeypatch)
    module, kept = once(given()), once(given(), keep_checkpoint=True)
    memory = module.memory()
    n, k = module.problem.n, module.problem.k
    for bias in (torch.linspace(-1, 1, n), None):
        module.bias = kept.bias = bias
        assert torch.equal(module(inputs(3, k)), kept(inputs(3, k)))
        assert module._buffers["weight"] is None
        assert module.memory() == memory
