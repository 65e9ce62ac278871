"""Inside a CUDA graph capture nothing is decided, packed or checked."""

from __future__ import annotations

import pytest
import torch
from faulty import CAPTURING, LAYER, NAMED, RAISES, ROUTE, layer_tensors, raising, rows

from kerneltable.errors import CaptureError
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import bind


@pytest.fixture
def capturing(monkeypatch):
    state = {"on": False}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["on"])
    return state


def test_a_call_that_ran_before_is_captured_and_no_other_one(plan, fakes, capturing):
    plan(rows(5), None)
    capturing["on"] = True
    called = fakes.calls[ROUTE[0]]
    assert plan(rows(5), None).shape == (5, LAYER.n)
    assert fakes.calls[ROUTE[0]] == called + 1
    with pytest.raises(CaptureError, match=r"has not run m=6 before"):
        plan(rows(6), None)
    assert fakes.calls[ROUTE[0]] == called + 1


def test_a_prepared_call_is_captured_although_something_else_was_set_aside_since(plan, ledger, fakes, capturing):
    plan(rows(5), None)
    ledger.forget()
    capturing["on"] = True
    called = fakes.calls[ROUTE[0]]
    plan(rows(5), None)
    assert fakes.calls[ROUTE[0]] == called + 1, "a capture must hold one launch, no checks"


def test_a_fault_inside_a_capture_is_an_error_and_falls_back_on_nothing(plan, fakes, ledger, capturing):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = RAISES
    capturing["on"] = True
    with pytest.raises(CaptureError, match="injected"):
        plan(rows(5), None)
    assert fakes.calls[ROUTE[1]] == 0
    assert ledger.report().set_aside == ()


def test_a_kernel_set_aside_since_is_not_captured_through_an_unprepared_one(plan, fakes, capturing):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    capturing["on"] = True
    plan(rows(5), None)
    with pytest.raises(CaptureError, match=f"{ROUTE[1]} has not run m=6"):
        plan(rows(6), None)


def test_memory_that_runs_out_inside_a_capture_is_not_tried_again(plan, fakes, capturing):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = NAMED["memory once"]
    capturing["on"] = True
    with pytest.raises(torch.OutOfMemoryError):
        plan(rows(5), None)


@pytest.mark.parametrize("ledger", [Ledger("always"), Ledger(synchronize=True)], ids=["always", "synchronize"])
def test_calls_that_are_all_checked_cannot_be_captured(plan, capturing, ledger):
    plan(rows(5), None)
    capturing["on"] = True
    with pytest.raises(CaptureError, match="every call"):
        plan(rows(5), None)


# --- Another thread captures ------------------------------------------------------------------------------------------


def untouched(ledger):
    """Nothing is set aside, counted against a kernel, or taken for checked."""
    found = ledger.report()
    return (found.set_aside, dict(found.failures), dict(found.checked), dict(found.unchecked)) == ((), {}, {}, {})


@pytest.mark.parametrize("error", [RuntimeError, torch.AcceleratorError])
def test_a_first_call_while_another_thread_captures_is_an_error_and_works_afterwards(plan, ledger, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr("kerneltable.run.watch.wait_for", raising(error, CAPTURING))
        for _ in range(2):
            with pytest.raises(CaptureError, match=r"another thread.*is capturing.*prepare\(m=.*thread_local") as found:
                plan(rows(5), None)
            assert isinstance(found.value.__cause__, error)
        assert untouched(ledger)
    assert plan(rows(5), None).shape == (5, LAYER.n)
    assert plan.id_for(5) == ROUTE[0]
    assert ledger.report().checked == {ROUTE[0]: 1}


def test_a_later_call_that_another_threads_capture_forbids_leaves_its_kernel_in_place(plan, fakes, ledger):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = NAMED["another thread captures"]
    with pytest.raises(CaptureError, match=ROUTE[0]):
        plan(rows(5), None)
    fakes.armed = False
    called = fakes.calls[ROUTE[0]]
    plan(rows(5), None)
    assert fakes.calls[ROUTE[0]] == called + 1
    assert fakes.calls[ROUTE[1]] == 0
    assert ledger.report().failures == {}


def test_a_layer_that_another_threads_capture_keeps_from_being_packed_is_packed_afterwards(table, h200, fakes, ledger):
    fakes.faults[ROUTE[0]] = NAMED["another thread captures while packing"]
    with pytest.raises(CaptureError, match=ROUTE[0]):
        bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    assert untouched(ledger)
    fakes.armed = False
    assert bind(table, h200, LAYER, layer_tensors(), ledger=ledger).kernel == ROUTE[0]


def test_a_required_kernel_is_not_at_fault_for_another_threads_capture(table, h200, fakes, ledger):
    fakes.faults[ROUTE[1]] = NAMED["another thread captures"]
    with pytest.raises(CaptureError, match=ROUTE[1]):
        bind(table, h200, LAYER, layer_tensors(), ROUTE[1], ledger)(rows(5), None)
    assert untouched(ledger)


def test_a_check_that_another_threads_capture_forbids_does_not_count_as_made(plan, ledger, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("kerneltable.run.trial.reference64", raising(RuntimeError, CAPTURING))
        with pytest.raises(CaptureError):
            plan(rows(5), None)
    assert untouched(ledger)
    plan(rows(5), None)
    assert ledger.report().checked == {ROUTE[0]: 1}


def test_a_kernel_that_fails_while_another_thread_captures_is_judged_afterwards(plan, fakes, ledger, monkeypatch):
    fakes.faults[ROUTE[0]] = RAISES
    with monkeypatch.context() as patch:
        patch.setattr("kerneltable.run.watch.wait_for", raising(RuntimeError, CAPTURING))
        with pytest.raises(CaptureError):
            plan(rows(5), None)
    assert untouched(ledger)
    plan(rows(5), None)
    assert plan.id_for(5) == ROUTE[1]


def test_what_a_calls_own_capture_forbids_is_told_as_that(plan, fakes, capturing):
    plan(rows(5), None)
    fakes.faults[ROUTE[0]] = NAMED["another thread captures"]
    capturing["on"] = True
    with pytest.raises(CaptureError, match="failed while a CUDA graph is captured"):
        plan(rows(5), None)
