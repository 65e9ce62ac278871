"""torch.jit.trace, torch.fx and dispatch modes record the op of a layer, never an uninitialised result."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import kerneltable
from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_op import register
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
EVERY_KERNEL = pytest.mark.parametrize("override", [None, BY_ROWS], ids=["reference", "the route"])


class Two(torch.nn.Module):
    """A layer between other operations."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x * 2) + 1


def ops_of(traced) -> list[str]:
    """The operations of a trace, by name."""
    if isinstance(traced, torch.fx.GraphModule):
        return [str(node.target).removesuffix(".default") for node in traced.graph.nodes if node.op == "call_function"]
    return [node.kind().replace("::", ".") for node in traced.inlined_graph.nodes() if "::linear" in node.kind()]


TRACES = {
    "jit": lambda module, x: torch.jit.trace(module, x, check_trace=False),
    "jit, checked": torch.jit.trace,
    "make_fx": lambda module, x: make_fx(module)(x),
    "make_fx before autograd": lambda module, x: make_fx(module, pre_dispatch=True)(x),
    "make_fx of functionalize": lambda module, x: make_fx(torch.func.functionalize(module))(x),
    "symbolic_trace": lambda module, _: torch.fx.symbolic_trace(module),
}
EVERY_TRACE = pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)


@EVERY_KERNEL
@EVERY_TRACE
@pytest.mark.parametrize("called", [False, True], ids=["first call", "called before"])
def test_a_traced_layer_is_one_op_with_the_bits_of_a_call_for_any_number_of_rows(trace, override, called):
    module = layer(override=override, bias=True)
    if called:
        module(inputs(3, K))
    traced = trace(module, inputs(3, K))
    assert ops_of(traced) == ["kerneltable.linear"]
    for x in (inputs(3, K), inputs(3, K) + 1, inputs(30, K), inputs(2, 3, K)):
        assert torch.equal(traced(x), module(x))
    assert not kerneltable.report().failures


@EVERY_TRACE
def test_a_traced_model_computes_its_layer_where_the_model_does(trace):
    model = Two(layer(bias=True))
    traced = trace(model, inputs(3, K))
    assert "kerneltable.linear" in ops_of(traced)
    assert torch.equal(traced(inputs(5, K)), model(inputs(5, K)))


@pytest.mark.parametrize("trace", [TRACES["jit"], TRACES["make_fx"]], ids=["jit", "make_fx"])
def test_autocast_casts_the_input_of_a_traced_layer(trace):
    module, x = layer(), inputs(3, K, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced, wanted = trace(module, x), module(x)
        assert wanted.dtype == torch.bfloat16
        assert torch.equal(traced(x), wanted)


def test_a_trace_of_old_weights_is_refused():
    module = layer()
    traced = torch.jit.trace(module, inputs(3, K), check_trace=False)
    module.load_state_dict(layer(seed=5).state_dict())
    with pytest.raises(Exception, match="no layer has this handle"):
        traced(inputs(3, K))


def test_tracing_refuses_what_a_call_refuses():
    for trace in (torch.jit.trace, TRACES["make_fx"]):
        with pytest.raises(KernelInputError, match=f"must be k = {K}"):
            trace(layer(), inputs(3, K + 1))


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@EVERY_KERNEL
def test_a_dispatch_mode_sees_one_op(override):
    module = layer(override=override)
    with Recorder() as mode:
        out = module(inputs(3, K))
    assert mode.seen[-1] == register().op
    assert torch.equal(out, module(inputs(3, K)))


def test_a_plain_input_among_fake_tensors_gives_a_fake_result_and_breaks_nothing():
    module, x = layer(override=BY_ROWS), inputs(3, K)
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = module(x)
    assert isinstance(out, FakeTensor)
    assert out.shape == (3, N)
    assert torch.equal(module(x), layer(override=BY_ROWS)(x))
    assert not kerneltable.report().failures
