"""torch.func around a layer, and tensors without plain memory: computed rightly or refused, and no kernel's fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torch.func import functional_call

import kerneltable
from kerneltable.errors import KernelInputError, LayerError
from kerneltable.model import Problem
from kerneltable.run.ledger import Ledger
from kerneltable.run.place import device_for
from kerneltable.run.plan import Plan, bind
from kerneltable.table import load_table
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer, tensors

EVERY_KERNEL = pytest.mark.parametrize("override", [None, BY_ROWS], ids=["reference", "the route"])


def total(module):
    return lambda x: module(x).float().sum()


def untouched() -> bool:
    found = kerneltable.report()
    return not found.set_aside and not found.failures


# --- The layer inside of torch.func -------------------------------------------------------------------------------


@EVERY_KERNEL
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_computes_each_sample_as_a_call_of_its_own(override, dim):
    module = layer(override=override, bias=True)
    x = inputs(2, 3, 5, K)
    wanted = torch.stack([module(one) for one in x.unbind(dim)])
    assert torch.equal(torch.vmap(module, in_dims=dim)(x), wanted)
    assert torch.equal(module(x[0]), module(x)[0])
    assert untouched()


def test_vmap_tells_a_wrong_input_as_a_plain_call_does():
    module = layer(name="up_proj")
    with pytest.raises(KernelInputError, match=f"up_proj: the last dimension of x must be k = {K}"):
        torch.vmap(module)(inputs(2, 3, K + 1))
    assert untouched()


FOLLOWED = {
    "grad": lambda module, x: torch.func.grad(total(module))(x),
    "vjp": torch.func.vjp,
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (x,)),
    "jacrev": lambda module, x: torch.func.jacrev(module)(x),
    "jacfwd": lambda module, x: torch.func.jacfwd(module)(x),
    "grad of vmap": lambda module, x: torch.func.grad(lambda x: torch.vmap(module)(x).float().sum())(x),
    "vmap of grad": lambda module, x: torch.vmap(torch.func.grad(total(module)))(x),
}


@EVERY_KERNEL
@pytest.mark.parametrize("ask", [*FOLLOWED.values(), torch.func.linearize], ids=[*FOLLOWED, "linearize"])
def test_an_input_whose_gradient_is_followed_is_refused_for_a_layer_has_none(ask, override):
    module = layer(override=override, bias=True, name="up_proj")
    x = inputs(3, K)
    for _ in range(2):
        with pytest.raises(KernelInputError, match=r"up_proj: x must be no tensor whose gradient torch\.func follows"):
            ask(module, x)
        assert untouched()
        assert torch.equal(module(x), layer(override=override, bias=True)(x))


AROUND = {
    "grad": lambda f: torch.func.grad(lambda y: (f() * y).sum())(torch.tensor(1.0)),
    "jvp": lambda f: torch.func.jvp(lambda y: (f() * y).sum(), (torch.tensor(1.0),), (torch.tensor(1.0),))[0],
    "vmap": lambda f: torch.vmap(lambda y: (f() * y).sum())(torch.ones(2))[0],
    "functionalize": lambda f: torch.func.functionalize(lambda y: (f() * y).sum())(torch.tensor(1.0)),
}


@EVERY_KERNEL
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_plain_input_is_computed_inside_of_a_transform_be_it_the_first_call(around, override):
    module = layer(override=override, bias=True)
    x = inputs(30, K)
    wanted = layer(override=override, bias=True)(x).float().sum()
    for _ in range(2):
        assert torch.equal(around(lambda: module(x).float()), wanted)
    assert untouched()


# --- Compiled, which sees no gradient that is followed --------------------------------------------------------------


REFUSED = r"up_proj: x must be no tensor whose gradient torch\.func follows"
REFUSALS = (KernelInputError, torch._dynamo.exc.TorchDynamoException)
"""Which of these comes is torch's choice, from version to version: the layer's error, or one that quotes it."""


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("whole", [False, True], ids=["in parts", "whole"])
@pytest.mark.parametrize("ask", FOLLOWED.values(), ids=FOLLOWED)
def test_a_compiled_transform_that_follows_a_layer_s_input_is_refused(ask, whole):
    module, x = layer(override=BY_ROWS, bias=True, name="up_proj"), inputs(3, K)
    compiled = torch.compile(lambda x: ask(module, x), backend="eager", fullgraph=whole)
    for _ in range(2):
        with pytest.raises(REFUSALS, match=REFUSED):
            compiled(x)
    assert untouched()


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_transform_of_something_else_computes_the_layer(around, backend):
    module, x = layer(override=BY_ROWS, bias=True), inputs(30, K)
    wanted = module(x).float().sum()
    if backend == "aot_eager" and around is AROUND["functionalize"]:
        pytest.skip("torch cannot: x must not already be a functional tensor")
    compiled = torch.compile(lambda x: around(lambda: module(x).float()), backend=backend)
    assert torch.equal(compiled(x), wanted)
    assert untouched()


def test_what_was_compiled_before_a_transform_is_not_used_in_it():
    module, x = layer(override=BY_ROWS, name="up_proj"), inputs(3, K)
    compiled = torch.compile(total(module), backend="eager")
    wanted = total(module)(x)
    for _ in range(2):
        assert torch.equal(compiled(x), wanted)
        with pytest.raises(REFUSALS, match=REFUSED):
            torch.func.grad(compiled)(x)


def test_a_layer_whose_first_call_is_under_a_compiled_vmap_is_bound_outside_of_graphs():
    module, x = layer(override=BY_ROWS), inputs(2, 3, K)
    found = torch.compile(torch.vmap(module), backend="eager")(x)
    assert torch.equal(found, torch.stack([module(one) for one in x]))
    assert torch.equal(torch.compile(torch.vmap(module), fullgraph=True)(x), found)
    assert untouched()


def test_functionalize_computes_a_layer():
    module = layer(override=BY_ROWS)
    assert torch.equal(torch.func.functionalize(module)(inputs(3, K)), module(inputs(3, K)))


@pytest.mark.parametrize(("name", "shape"), [("bias", (N,)), ("weight_scale", (2, 2))])
@pytest.mark.parametrize("how", ["vmap", "grad"])
def test_tensors_of_a_layer_that_belong_to_a_transform_are_refused(name, shape, how):
    module, x = layer(override=BY_ROWS, bias=True), inputs(3, K)
    before = module(x)

    def call(given):
        return functional_call(module, {name: given}, (x,)).float().sum()

    given = torch.ones(2, *shape)
    asked = {"vmap": lambda: torch.vmap(call)(given), "grad": lambda: torch.func.grad(call)(given[0])}
    with pytest.raises(LayerError, match=rf"{name}.* found a tensor of torch\.func"):
        asked[how]()
    assert untouched()
    assert torch.equal(module(x), before)


# --- Tensors without plain memory ---------------------------------------------------------------------------------

STRANGE = {
    "sparse_coo": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.to_sparse_csr(),
    "_mkldnn": lambda x: x.to_mkldnn(),
    "sign": torch._neg_view,
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "nested tensor": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*CSR.*:UserWarning", "ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize(("word", "make"), STRANGE.items(), ids=STRANGE)
def test_a_tensor_without_plain_memory_is_refused_and_is_no_kernels_fault(word, make):
    module, x = layer(override=BY_ROWS, name="up_proj"), inputs(3, K)
    with pytest.raises(KernelInputError, match=rf"found a.* {word}.*; convert it"):
        module(make(x))
    assert untouched()
    assert torch.equal(module(x), layer(override=BY_ROWS)(x))
    with pytest.raises(KernelInputError, match=rf"found a.* {word}.*; convert it"):
        module(make(x))


# --- A plan that is called past its layer -------------------------------------------------------------------------


@pytest.fixture
def plan() -> Plan:
    table = load_table()
    problem = Problem("fp8_block_w8a8", n=N, k=K)
    return bind(table, device_for(torch.device("cpu"), table), problem, tensors(), ledger=Ledger())


def test_a_plan_takes_no_tensor_of_a_transform_for_its_kernels_fault(plan):
    for ready in (False, True):
        with pytest.raises(KernelInputError, match=r"with numbers; found a tensor of torch\.func"):
            torch.vmap(lambda x: plan(x, None))(inputs(2, 3, K))
        assert not plan.ledger.report().failures, f"ready {ready}"
        plan(inputs(3, K), None)


def test_what_a_transform_makes_a_kernel_raise_is_not_its_fault(plan):
    x = inputs(3, K)

    def call(y):
        return (plan(x, None).float() * y).sum()

    with pytest.raises(KernelInputError, match=r"inside torch\.jit\.trace, torch\.func.*not set aside.*outside"):
        torch.func.grad(call)(torch.tensor(1.0))
    assert not plan.ledger.report().failures
    assert torch.equal(plan(x, None), layer(override=BY_ROWS)(x))
