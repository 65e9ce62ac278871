"""What a failure speaks for, what a required kernel does, and what follows on a lost device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from faulty import LAYER, LOST, NAMED, RAISES, ROUTE, layer_tensors, raising, rows

import kerneltable
from kerneltable.errors import DeviceLost, KernelFault
from kerneltable.kernels import registry
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import bind
from kerneltable.table import load_table

# --- What a failure speaks for ----------------------------------------------------------------------------------------


def test_a_failed_call_speaks_for_its_band_of_rows_only(plan, fakes, ledger):
    fakes.faults[ROUTE[0]] = RAISES
    assert plan.id_for(5) == ROUTE[0]
    plan(rows(5), None)
    assert [plan.id_for(m) for m in (1, 2, 16, 17)] == [ROUTE[0], ROUTE[1], ROUTE[1], ROUTE[0]]
    assert plan.kernel == ROUTE[0]
    assert ledger.report().fallbacks == {(ROUTE[0], ROUTE[1]): 1}


def test_another_layer_of_the_same_shape_does_not_try_it_again(table, h200, plan, fakes, ledger):
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    called = fakes.calls[ROUTE[0]]
    twin = bind(table, h200, LAYER, layer_tensors(1), ledger=ledger)
    twin(rows(9), None)
    assert fakes.calls[ROUTE[0]] == called
    other = bind(table, h200, replace(LAYER, output="f32"), layer_tensors(1), ledger=ledger)
    other(rows(9), None)
    assert fakes.calls[ROUTE[0]] == called + 1


def test_another_device_and_another_ledger_still_try_it(table, h200, plan, fakes, ledger):
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    assert bind(table, replace(h200, index=1), LAYER, layer_tensors(), ledger=ledger).id_for(5) == ROUTE[0]
    assert bind(table, h200, LAYER, layer_tensors(), ledger=Ledger()).id_for(5) == ROUTE[0]
    assert bind(table, h200, LAYER, layer_tensors(), ledger=ledger).id_for(5) == ROUTE[1]


def test_a_kernel_that_cannot_be_loaded_is_left_for_every_layer(table, h200, fakes, ledger):
    fakes.faults[ROUTE[0]] = NAMED["import error"]
    for output in ("bf16", "f32", "f16"):
        bind(table, h200, replace(LAYER, output=output), layer_tensors(), ledger=ledger)
    assert fakes.loads[ROUTE[0]] == 1


def test_a_running_layer_leaves_a_kernel_when_another_layer_finds_it_wrong(table, h200, plan, fakes, ledger):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = RAISES
    bind(table, h200, LAYER, layer_tensors(1), ledger=ledger)(rows(6), None)
    called = fakes.calls[ROUTE[0]]
    plan(rows(5), None)
    assert fakes.calls[ROUTE[0]] == called
    assert fakes.calls[ROUTE[1]] > 0


def test_forgetting_tries_every_kernel_again(plan, fakes, ledger):
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    fakes.armed = False
    ledger.forget()
    plan(rows(5), None)
    assert plan.id_for(5) == ROUTE[0]
    assert ledger.report().set_aside == ()
    assert ledger.report().failures == {ROUTE[0]: 1}


def test_a_kernel_that_names_itself_unavailable_when_packed_is_left_for_every_layer(table, h200, fakes, ledger):
    fakes.faults[ROUTE[0]] = NAMED["constructor gets no compiler"]
    for output in ("bf16", "f32"):
        bind(table, h200, replace(LAYER, output=output), layer_tensors(), ledger=ledger)
    assert fakes.packs[ROUTE[0]] == 1


def test_weights_that_a_kernel_cannot_take_are_a_matter_of_their_layer_alone(table, h200, fakes, ledger, caplog):
    fakes.faults[ROUTE[0]] = NAMED["constructor refuses the weights"]
    declined = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    fakes.armed = False
    twin = bind(table, h200, LAYER, layer_tensors(1), ledger=ledger)
    assert [plan.id_for(5) for plan in (declined, twin)] == [ROUTE[1], ROUTE[0]]
    assert [plan.kernel for plan in (declined, twin)] == [ROUTE[1], ROUTE[0]]
    ledger.forget()
    assert declined.id_for(5) == ROUTE[1]
    assert ledger.report().failures == {ROUTE[0]: 2}
    assert ledger.report().fallbacks == {(ROUTE[0], ROUTE[1]): 2}
    assert caplog.text.count(f"{ROUTE[0]} is set aside for one layer of fp8_block_w8a8 n=") == 1


def test_a_shape_that_a_kernel_cannot_run_is_left_for_layers_like_it(table, h200, fakes, ledger):
    fakes.faults[ROUTE[0]] = NAMED["constructor refuses the shape"]
    bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    fakes.armed = False
    assert bind(table, h200, LAYER, layer_tensors(1), ledger=ledger).kernel == ROUTE[1]
    assert bind(table, h200, replace(LAYER, output="f32"), layer_tensors(), ledger=ledger).kernel == ROUTE[0]


def test_a_constructor_that_changes_the_layer_is_a_fault_though_its_numbers_may_be_right(table, h200, fakes):
    fakes.faults[ROUTE[0]] = NAMED["repacked in place"]
    ledger = Ledger("never")
    bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    (record,) = ledger.report().set_aside
    assert (record.stage, record.instead) == ("pack", ROUTE[1])
    assert "it changed weight_scale of the layer" in record.reason


def test_a_layer_of_a_user_falls_back_with_right_numbers(monkeypatch, caplog):
    right = registry.load("reference")

    class Broken(right):
        def __call__(self, x, bias):
            raise RuntimeError("injected")

    monkeypatch.setattr(registry, "load", lambda kernel: right if kernel == "reference" else Broken)
    layer = kerneltable.QuantLinear.from_tensors("fp8_block_w8a8", layer_tensors(), device="cpu")
    first = layer.kernel_for(5)
    forced = kerneltable.QuantLinear.from_tensors("fp8_block_w8a8", layer_tensors(), device="cpu", kernel="reference")
    assert first != "reference"
    assert torch.equal(layer(rows(5)), forced(rows(5)))
    assert layer.kernel_for(5) == "reference"
    assert f"{first} is set aside" in caplog.text
    fallbacks = kerneltable.report().fallbacks
    given, taken = zip(*fallbacks, strict=True)
    assert first in given
    assert set(taken) - set(given) == {"reference"}
    assert set(fallbacks.values()) == {1}


# --- Required kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raises", "twice too large", "wrong dtype", "import error", "constructor raises"])
@pytest.mark.parametrize("how", ["force", "require"])
def test_a_required_kernel_that_fails_raises_and_is_tried_at_every_call(table, h200, fakes, ledger, fault, how):
    fakes.faults[ROUTE[1]] = NAMED[fault]
    force = None
    if how == "force":
        force = ROUTE[1]
    else:
        require = f"override: 1\nroutes:\n  fp8_block_w8a8: {{cuda: {{require: {ROUTE[1]}}}}}\n"
        table = load_table(overrides=[("require", require)])
    for _ in range(2):
        with pytest.raises(KernelFault, match=ROUTE[1]):
            bind(table, h200, LAYER, layer_tensors(), force, ledger)(rows(5), None)
    assert ledger.report().failures == {ROUTE[1]: 2}
    assert ledger.report().set_aside == ()
    fakes.armed = False
    assert bind(table, h200, LAYER, layer_tensors(), force, ledger)(rows(5), None).shape == (5, LAYER.n)


# --- Lost devices -----------------------------------------------------------------------------------------------------


def test_nothing_is_bound_or_called_on_a_lost_device(table, h200, plan, fakes, ledger):
    other = bind(table, h200, replace(LAYER, output="f32"), layer_tensors(), ledger=ledger)
    other(rows(5), None)
    fakes.faults[ROUTE[0]] = LOST
    with pytest.raises(DeviceLost, match="illegal memory access"):
        plan(rows(5), None)
    fakes.armed = False
    called = dict(fakes.calls)
    with pytest.raises(DeviceLost, match=ROUTE[0]):
        other(rows(5), None)
    with pytest.raises(DeviceLost, match="start it"):
        bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    assert dict(fakes.calls) == called
    ledger.forget()
    assert not ledger.report().healthy
    bind(table, replace(h200, index=1), LAYER, layer_tensors(), ledger=ledger)(rows(5), None)


def test_a_device_that_does_not_answer_after_a_fault_is_lost(plan, fakes, ledger, monkeypatch):
    fakes.faults[ROUTE[0]] = RAISES
    dead = raising(RuntimeError, "CUDA error: unspecified launch failure")
    monkeypatch.setattr("kerneltable.run.watch.wait_for", dead)
    with pytest.raises(DeviceLost):
        plan(rows(5), None)
    assert fakes.calls[ROUTE[1]] == 0
