"""Plans with bands of m: a band is decided once, kernels of one layout share what they packed, one kernel on demand."""

from __future__ import annotations

import pytest
import torch

from kerneltable.errors import NoKernelError
from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.ops import cpp
from kerneltable.run import choice
from kerneltable.run.checkpoints.generation import kernels_of
from kerneltable.run.ledger import Ledger
from kerneltable.run.linear import QuantLinear
from kerneltable.run.packing import held_bytes
from kerneltable.run.plan import bind
from kerneltable.select import device, select
from kerneltable.table import load_table

LAYER = Problem("w8a16_fp8", n=256, k=256, weight_granularity="channel")
SIZE = 256 * 256
ORDER = """
routes:
  w8a16_fp8:
    cuda:
      order:
        replace:
          - {kernel: hopper_w8a16, when: {m: {max: 16}}}
          - {kernel: humming_w8a16, when: {m: {min: 257}}}
          - marlin_w8a16
          - {kernel: triton_w8a16, when: {m: {max: 512}}}
          - reference
"""
PACKAGES = {
    "torch": "2.11.0",
    "triton": "3.6.0",
    "kerneltable": None,
    "cuda-bindings": "13.0",
    "humming-kernels": "0.1.19",
}


class Packing:
    """A stand-in that packs a copy of the weight, or shares one; its results are right in form."""

    def __init__(self, problem, *, weight, weight_scale, packed=None):
        self.packed = weight.view(torch.uint8).clone() if packed is None else packed
        self.given = packed
        self.n, self.output = problem.n, torch.bfloat16

    def __call__(self, x, bias):
        return torch.zeros(x.shape[0], self.n, dtype=x.dtype)


class Plain(Packing):
    """One that knows nothing of sharing."""

    def __init__(self, problem, *, weight, weight_scale):
        super().__init__(problem, weight=weight, weight_scale=weight_scale)


def tensors():
    return {"weight": torch.ones(256, 256).to(torch.float8_e4m3fn), "weight_scale": torch.ones(256)}


def deployed(more=""):
    return load_table(overrides=[("order", f"override: 1\n{ORDER}{more}")])


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda kernel: Plain if kernel == "humming_w8a16" else Packing)


def bound(table, problem=LAYER, **more):
    return bind(table, device("h200", table, packages=PACKAGES), problem, tensors(), ledger=Ledger("never"), **more)


def rows(m):
    return torch.zeros(m, 256, dtype=torch.bfloat16)


# --- The choice -------------------------------------------------------------------------------------------------------


def test_a_band_is_asked_for_once_however_many_m_come(stand_ins, monkeypatch):
    asked = []
    working = choice.select
    monkeypatch.setattr(choice, "select", lambda *question: asked.append(question[2].m) or working(*question))
    plan = bound(deployed("plans: {weight_copies: 2}\n"))
    for m in (*range(1, 600), *range(1, 600)):
        plan(rows(m), None)
    assert len([m for m in asked if m is not None]) <= 2 * 5
    assert [plan.id_for(m) for m in (1, 16, 17, 256, 257, 10**6)] == [
        "hopper_w8a16", "hopper_w8a16", "marlin_w8a16", "marlin_w8a16", "humming_w8a16", "humming_w8a16",
    ]  # fmt: skip


def test_the_plan_and_the_table_agree_on_every_m(stand_ins):
    table = deployed()
    plan = bound(table)
    where = device("h200", table, packages=PACKAGES)
    for m in (*range(1, 40), 255, 256, 257, 258, 511, 512, 513, 5000):
        assert plan.id_for(m) == select(table, where, LAYER.at(m)).kernel


# --- Copies of the weights --------------------------------------------------------------------------------------------


def test_a_plan_keeps_no_second_copy_unless_it_may(stand_ins):
    one, two = bound(deployed()), bound(deployed("plans: {weight_copies: 2}\n"))
    assert (one.id_for(300), two.id_for(300)) == ("marlin_w8a16", "humming_w8a16")


def test_kernels_of_one_layout_share_a_copy_and_others_do_not(stand_ins):
    plan = bound(deployed("plans: {weight_copies: 2}\n"))
    first, second, other = (plan.kernel_for(m) for m in (1, 17, 257))
    assert first.packed is second.packed
    assert first.given is None
    assert second.given is first.packed
    assert other.packed is not first.packed
    calls = [(one.kernel, one.call) for one in plan.bound()]
    sizes = held_bytes(calls, plan.tensors)
    assert sizes == {"hopper_w8a16": SIZE, "marlin_w8a16": 0, "humming_w8a16": SIZE}


def test_kernels_that_take_the_checkpoint_share_nothing_that_they_packed(stand_ins):
    plan = bound(deployed("plans: {weight_copies: 0}\n"))
    assert plan.id_for(1) == "triton_w8a16"
    plan.kernel_for(1)
    assert plan.packed == {}


def test_held_bytes_sees_tensors_in_containers_and_leaves_the_layer_s_own_out():
    layer = tensors()
    kept = {"pair": (layer["weight"], torch.zeros(3)), "more": [torch.zeros(2, dtype=torch.uint8)]}
    assert held_bytes([("a", kept), ("b", kept["pair"])], layer) == {"a": 14, "b": 0}


def test_layers_share_a_copy_between_the_types_of_their_inputs_and_tell_what_they_hold(stand_ins, monkeypatch):
    monkeypatch.setattr("kerneltable.run.bound_layer.check_place", lambda *where: None)
    table = deployed()
    where = device("h200", table, packages=PACKAGES)
    layer = QuantLinear.from_tensors("w8a16_fp8", tensors(), table=table, device=where, verify="never")
    layer.prepare((1, 17))
    layer.prepare((1,), input="f16")
    assert layer.memory() == {"hopper_w8a16": SIZE, "marlin_w8a16": 0}
    assert "  packed   hopper_w8a16: 64.0 KiB" in layer.explain()
    layer.repack()
    layer.prepare((1,), input="f16")
    assert layer.memory()["hopper_w8a16"] == SIZE


@pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}")
def test_a_layer_names_every_kernel_of_its_bands_and_counts_those_that_ran():
    order = "{kernel: reference, when: {m: {min: 5}}}, cpu_fp8"
    table = load_table(
        overrides=[
            ("bands", f"override: 1\nroutes: {{w8a16_fp8: {{cpu: {{order: {{replace: [{order}, reference]}}}}}}}}\n")
        ]
    )
    given = {"weight": torch.ones(32, 64).to(torch.float8_e4m3fn), "weight_scale": torch.ones(32)}
    layer = QuantLinear.from_tensors("w8a16_fp8", given, table=table, device="cpu", verify="never")
    assert "kernel=cpu_fp8 + reference" in repr(layer)
    model = torch.nn.Sequential(layer)
    layer(torch.ones(1, 64, dtype=torch.bfloat16))
    assert kernels_of(model) == {"cpu_fp8": 1}
    layer(torch.ones(8, 64, dtype=torch.bfloat16))
    assert kernels_of(model) == {"cpu_fp8 + reference": 1}


# --- One kernel on demand ---------------------------------------------------------------------------------------------

STEADY = "plans: {batch_invariant: true}\nkernels:\n" + "".join(
    f"  {name}: {{unsafe: true, reason: a test, numerics: {{batch_invariant: true}}}}\n"
    for name in ("hopper_w8a16", "marlin_w8a16", "triton_w8a16", "reference")
)


def test_a_plan_under_batch_invariance_binds_one_kernel_at_once(stand_ins):
    plan = bound(deployed(STEADY))
    assert not plan.by_rows
    assert {plan.id_for(m) for m in (1, 16, 17, 300, 5000)} == {"marlin_w8a16"}


class Failing(Packing):
    """One that fails for five rows."""

    def __call__(self, x, bias):
        if x.shape[0] == 5:
            raise RuntimeError("wrong arguments")
        return super().__call__(x, bias)


@pytest.mark.parametrize(("more", "after"), [("", "marlin_w8a16"), (STEADY, "triton_w8a16")])
def test_a_kernel_that_fails_for_a_band_is_left_for_every_m_under_batch_invariance(monkeypatch, more, after):
    monkeypatch.setattr(registry, "load", lambda kernel: Failing if kernel == "marlin_w8a16" else Packing)
    order = "routes: {w8a16_fp8: {cuda: {order: {replace: [marlin_w8a16, triton_w8a16, reference]}}}}\n"
    plan = bound(load_table(overrides=[("order", f"override: 1\n{order}{more}")]))
    assert {plan.id_for(m) for m in (5, 17)} == {"marlin_w8a16"}
    plan(rows(5), None)
    assert plan.id_for(5) == "triton_w8a16"
    assert plan.id_for(17) == plan.id_for(1) == after


@pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}")
@pytest.mark.parametrize(("scheme", "scale"), [
    ("fp8_block_w8a8", torch.rand(2, 3) + 0.5), ("fp8_w8a8", torch.rand(200) + 0.5),
    ("w8a16_fp8", torch.rand(200) + 0.5), ("mxfp8", torch.randint(120, 130, (200, 10), dtype=torch.uint8)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_row_of_cpu_fp8_has_the_same_bits_in_every_batch(scheme, scale, dtype):
    table = load_table(overrides=[("demand", "override: 1\nplans: {batch_invariant: true}\n")])
    weight = torch.randn(200, 320).to(torch.float8_e4m3fn)
    layer = QuantLinear.from_tensors(
        scheme, {"weight": weight, "weight_scale": scale}, table=table, device="cpu", input=dtype, verify="never"
    )
    assert layer.kernel == "cpu_fp8"
    x = torch.randn(300, 320).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    alone = torch.cat([layer(row) for row in x[:80].split(1)])
    for m in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 80):
        assert torch.equal(layer(x[:m]), alone[:m]), m
        assert torch.equal(layer(x[80 - m : 80]), alone[80 - m :]), m
    assert torch.equal(layer(x)[:80], alone)
    assert torch.equal(layer(x[37:])[:43], alone[37:])


def test_a_route_of_bands_that_no_kernel_serves_is_refused_when_the_layer_is_made(stand_ins):
    kernels = ("hopper_w8a16", "humming_w8a16", "marlin_w8a16", "triton_w8a16", "reference")
    large = ", ".join(f"{kernel}: {{accepts: {{n: {{min: 4096}}}}}}" for kernel in kernels)
    with pytest.raises(NoKernelError, match=r"accepts\.n"):
        bound(deployed(f"kernels: {{{large}}}\n"))
