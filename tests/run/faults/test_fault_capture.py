"""Inside a CUDA graph capture nothing is decided, packed or checked."""

from __future__ import annotations

import pytest
import torch
from faulty import LAYER, NAMED, RAISES, ROUTE, rows

from kerneltable.errors import CaptureError
from kerneltable.run.ledger import Ledger


@pytest.fixture
def capturing(monkeypatch):
    state = {"on": False}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["on"])
    return state


def test_a_call_that_ran_before_is_captured_and_no_other_one(plan, fakes, capturing):
    plan.prepare(5)
    capturing["on"] = True
    called = fakes.calls[ROUTE[0]]
    assert plan(rows(5), None).shape == (5, LAYER.n)
    assert fakes.calls[ROUTE[0]] == called + 1
    with pytest.raises(CaptureError, match=r"has not run m=6 before"):
        plan(rows(6), None)
    assert fakes.calls[ROUTE[0]] == called + 1


def test_a_prepared_call_is_captured_although_something_else_was_set_aside_since(plan, ledger, fakes, capturing):
    plan.prepare(5)
    ledger.forget()
    capturing["on"] = True
    called = fakes.calls[ROUTE[0]]
    plan(rows(5), None)
    assert fakes.calls[ROUTE[0]] == called + 1, "a capture must hold one launch, no checks"


def test_a_fault_inside_a_capture_is_an_error_and_falls_back_on_nothing(plan, fakes, ledger, capturing):
    plan.prepare(5)
    fakes.faults[ROUTE[0]] = RAISES
    capturing["on"] = True
    with pytest.raises(CaptureError, match="injected"):
        plan(rows(5), None)
    assert fakes.calls[ROUTE[1]] == 0
    assert ledger.report().set_aside == ()


def test_a_kernel_set_aside_since_is_not_captured_through_an_unprepared_one(plan, fakes, capturing):
    plan.prepare(5)
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    capturing["on"] = True
    plan(rows(5), None)
    with pytest.raises(CaptureError, match=f"{ROUTE[1]} has not run m=6"):
        plan(rows(6), None)


def test_memory_that_runs_out_inside_a_capture_is_not_tried_again(plan, fakes, capturing):
    plan.prepare(5)
    fakes.faults[ROUTE[0]] = NAMED["memory once"]
    capturing["on"] = True
    with pytest.raises(torch.OutOfMemoryError):
        plan(rows(5), None)


@pytest.mark.parametrize("ledger", [Ledger("always"), Ledger(synchronize=True)], ids=["always", "synchronize"])
def test_calls_that_are_all_checked_cannot_be_captured(plan, capturing, ledger):
    plan.prepare(5)
    capturing["on"] = True
    with pytest.raises(CaptureError, match="every call"):
        plan(rows(5), None)
