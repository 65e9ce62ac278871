"""What is checked of a call, and what is no fault of a kernel: inputs, memory, interrupts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from faulty import LAYER, NAMED, ROUTE, TWICE, Fault, K, layer_tensors, raising, rows

from kerneltable.errors import DeviceLost, KernelInputError
from kerneltable.kernels import registry
from kerneltable.run import trial
from kerneltable.run.ledger import Ledger
from kerneltable.run.oracle import reference64
from kerneltable.run.plan import bind
from kerneltable.run.trial import check_numbers, sampled_columns, sampled_rows
from kerneltable.select import complete
from kerneltable.table import load_table

BLOCKS = complete(load_table().schemes["fp8_block_w8a8"], LAYER)


# --- Checks -----------------------------------------------------------------------------------------------------------


def test_each_kernel_is_checked_once_a_band(plan, fakes, ledger):
    for m in (5, 6, 5, 16):
        plan(rows(m), None)
    assert ledger.report().checked == {ROUTE[0]: 1}
    assert fakes.calls[ROUTE[0]] == 5
    plan(rows(17), None)
    assert ledger.report().checked == {ROUTE[0]: 2}


def test_without_checks_wrong_numbers_pass_but_a_wrong_form_does_not(table, h200, fakes):
    fakes.faults[ROUTE[0]] = TWICE
    trusting = bind(table, h200, LAYER, layer_tensors(), ledger=Ledger("never"))
    wrong = trusting(rows(5), None)
    fakes.faults[ROUTE[0]] = NAMED["wrong dtype"]
    right = trusting(rows(5), None)
    assert torch.equal(wrong, right * 2)
    assert fakes.calls == {ROUTE[0]: 2, ROUTE[1]: 1}


def test_a_later_wrong_result_is_seen_only_when_every_call_is_checked(table, h200, fakes):
    fakes.armed = False
    once, always = (bind(table, h200, LAYER, layer_tensors(), ledger=Ledger(verify)) for verify in ("first", "always"))
    right = [plan(rows(5), None) for plan in (once, always)]
    fakes.faults[ROUTE[0]], fakes.armed = TWICE, True
    assert torch.equal(once(rows(5), None), right[0] * 2)
    assert torch.equal(always(rows(5), None), right[1])


def test_an_input_with_nan_and_infinity_is_no_fault(plan, ledger):
    x = rows(5)
    x[0, 0], x[4, 1] = torch.nan, torch.inf
    plan(x, None)
    assert ledger.report().set_aside == ()
    assert ledger.report().checked == {ROUTE[0]: 1}


def test_a_reference_that_cannot_be_computed_is_counted_told_once_and_breaks_no_call(plan, ledger, monkeypatch, caplog):
    monkeypatch.setattr(trial, "reference64", raising(TypeError, "no float64 here"))
    plan(rows(5), None)
    plan(rows(6), None)
    assert ledger.report().unchecked == {ROUTE[0]: 1}
    assert caplog.text.count(f"{ROUTE[0]} ran unchecked for fp8_block_w8a8 n=") == 1
    assert ledger.report().set_aside == ()


def test_an_input_of_inference_mode_that_a_kernel_changed_is_put_back_outside_of_it(plan, fakes, ledger):
    def overwritten(out, x, kept):  # device code asks nobody
        with torch.inference_mode():
            x.zero_()
        return out

    fakes.faults[ROUTE[0]] = Fault("wrote to x", "result", overwritten, silent=True)
    with torch.inference_mode():
        x = rows(5)
    before = x.clone()
    plan(x, None)
    assert torch.equal(x, before)
    assert "changed its input x" in ledger.report().set_aside[0].reason


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_a_kernel_that_would_give_a_gradient_to_later_callers_is_seen_in_its_first_call(plan, fakes, ledger, around):
    scale = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    fakes.faults[ROUTE[0]] = Fault("a parameter inside", "result", lambda out, x, kept: out * scale)
    with around():
        assert not plan(rows(5), None).requires_grad
    assert "the result must be detached" in ledger.report().set_aside[0].reason


def test_a_kernel_may_give_tensors_of_inference_mode_to_callers_in_it(plan, ledger):
    with torch.inference_mode():
        assert plan(rows(5), None).is_inference()
    assert ledger.report().set_aside == ()


def test_a_device_that_is_lost_while_checking_is_lost(plan, monkeypatch):
    sticky = raising(RuntimeError, "CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(trial, "reference64", sticky)
    with pytest.raises(DeviceLost):
        plan(rows(5), None)


def test_the_sample_holds_both_ends_and_the_row_that_sets_the_scale():
    x = torch.zeros(100, K)
    x[42, 3] = -7
    per_tensor = replace(LAYER, scheme="fp8_w8a8", input_granularity="tensor", input_scaling="dynamic")
    assert sampled_rows(per_tensor, x).tolist() == [0, 1, 2, 3, 42, 96, 97, 98, 99]
    assert sampled_rows(replace(per_tensor, input_granularity="token"), x).tolist() == [0, 1, 2, 3, 96, 97, 98, 99]
    assert sampled_rows(per_tensor, x[:1]).tolist() == [0]


def test_the_sampled_outputs_reach_from_the_first_to_the_last():
    assert sampled_columns(512) == [range(512)]
    windows = sampled_columns(1000)
    assert [len(window) for window in windows] == [128] * 4
    assert (windows[0].start, windows[-1].stop) == (0, 1000)


@pytest.mark.parametrize("n", [512, 640])
def test_windows_of_the_reference_are_parts_of_the_whole(n):
    problem = replace(BLOCKS, n=n)
    tensors = {"weight": torch.randn(n, K).to(torch.float8_e4m3fn), "weight_scale": torch.rand(n // 128, 1) + 0.5}
    bias = torch.randn(n)
    whole = reference64(problem, tensors, rows(5), bias, True)
    for columns in sampled_columns(n):
        part = reference64(problem, tensors, rows(5), bias, True, columns)
        for found, wanted in zip(part, whole, strict=True):
            assert torch.allclose(found, wanted[:, columns.start : columns.stop], rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize(("column", "seen"), [(0, True), (639, True), (130, False)])
def test_a_wrong_window_is_seen_at_a_first_call_and_any_wrong_output_when_all_are_checked(table, column, seen):
    tensors = {"weight": torch.ones(640, K).to(torch.float8_e4m3fn), "weight_scale": torch.ones(5, 1)}
    problem, x = replace(BLOCKS, n=640), rows(5)
    out = reference64(problem, tensors, x, None, True)[0].to(torch.bfloat16)
    out[:, column] = torch.nan
    kernel = table.kernels[ROUTE[0]]
    assert (check_numbers(kernel, problem, tensors, x, None, out).fault is not None) is seen
    assert check_numbers(kernel, problem, tensors, x, None, out, every_column=True).fault is not None


def test_a_verify_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="first, always, never; found 'sometimes'"):
        Ledger("sometimes")


# --- Inputs, memory, interrupts ---------------------------------------------------------------------------------------


WRONG_INPUTS = {
    "f32": lambda: rows(5).float(),
    "another k": lambda: rows(5)[:, :64],
    "one dimension": lambda: rows(5)[0],
    "meta": lambda: rows(5).to("meta"),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_a_wrong_input_is_an_error_of_the_caller_and_no_fault_of_a_kernel(plan, ledger, name):
    with pytest.raises(KernelInputError, match=r"takes x \[m, 128\]"):
        plan(WRONG_INPUTS[name](), None)
    assert ledger.report().failures == {}


def test_a_wrong_input_on_which_a_running_kernel_fails_is_no_fault_of_it(plan, ledger):
    plan(rows(5), None)
    with pytest.raises(KernelInputError) as caught:
        plan(rows(5)[:, :64], None)
    assert caught.value.__cause__ is not None
    assert ledger.report().failures == {}


def test_a_fake_tensor_is_refused_and_sets_nothing_aside(plan, ledger):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(KernelInputError):
        plan(mode.from_tensor(rows(5)), None)
    assert ledger.report().failures == {}


def test_a_layer_that_just_fits_into_memory_is_packed_without_a_copy(table, h200, fakes, ledger, monkeypatch):
    fakes.load = lambda kernel: lambda problem, **tensors: tensors["weight"].sum
    monkeypatch.setattr(registry, "load", fakes.load)
    monkeypatch.setattr(torch.Tensor, "clone", raising(torch.OutOfMemoryError, "full"))
    assert bind(table, h200, LAYER, layer_tensors(), ledger=ledger).id_for(5) == ROUTE[0]


@pytest.mark.parametrize("stage", ["load", "pack"])
def test_an_interrupt_while_packing_passes_and_the_next_call_packs(table, h200, fakes, ledger, stage):
    fakes.faults[ROUTE[0]] = Fault("interrupt", stage, raising(KeyboardInterrupt), times=1)
    with pytest.raises(KeyboardInterrupt):
        bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    assert bind(table, h200, LAYER, layer_tensors(), ledger=ledger).kernel == ROUTE[0]


def test_unused_memory_is_given_back_before_the_second_try(plan, fakes, monkeypatch):
    given_back = []
    monkeypatch.setattr("kerneltable.run.watch.give_back_memory", given_back.append)
    fakes.faults[ROUTE[0]] = NAMED["memory once"]
    plan(rows(5), None)
    assert given_back == [torch.device("cpu")]


def test_a_synchronizing_ledger_names_the_kernel_of_an_asynchronous_error(table, h200, fakes, monkeypatch):
    pending = []

    def wait(place: torch.device) -> None:
        if pending:
            raise RuntimeError(pending.pop())

    monkeypatch.setattr("kerneltable.run.watch.wait_for", wait)
    plan = bind(table, h200, LAYER, layer_tensors(), ledger=Ledger(synchronize=True))
    plan(rows(5), None)
    pending.append("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLost, match=f"{ROUTE[0]}: RuntimeError: CUDA error"):
        plan(rows(5), None)
