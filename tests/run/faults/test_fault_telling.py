"""What is logged and counted; threads, children and kernels that call back."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial

import pytest
import torch
from faulty import LAYER, NAMED, RAISES, ROUTE, TWICE, Fault, layer_tensors, raising, rows

import kerneltable
from kerneltable.errors import KernelUnavailable, NoKernelError
from kerneltable.run.ledger import shared_ledger
from kerneltable.run.plan import bind
from kerneltable.select import device


def test_a_selection_and_a_fallback_are_one_log_line_each(table, h200, fakes, ledger, caplog):
    fakes.faults[ROUTE[0]] = RAISES
    with caplog.at_level(logging.INFO):
        plan = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
        for _ in range(3):
            plan(rows(5), None)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" on ")[0] for line in lines] == [
        f"{ROUTE[0]} computes fp8_block_w8a8 n=32 k=128 input=bf16",
        f"{ROUTE[0]} is set aside for fp8_block_w8a8 n=32 k=128 input=bf16 m=2-16",
        f"{ROUTE[1]} computes fp8_block_w8a8 n=32 k=128 input=bf16",
    ]
    assert "h200 (cuda:sm90): run: RuntimeError: injected; next: " + ROUTE[1] in lines[1]


def test_what_a_log_filter_raises_does_not_break_a_call(table, h200, fakes, ledger):
    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the application")

    log = logging.getLogger("kerneltable")
    log.addFilter(broken)
    try:
        fakes.faults[ROUTE[0]] = RAISES
        plan = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
        assert plan(rows(5), None).shape == (5, LAYER.n)
    finally:
        log.removeFilter(broken)


def test_the_report_counts_and_prints(plan, fakes, ledger, capsys):
    fakes.faults[ROUTE[0]] = RAISES
    plan(rows(5), None)
    report = kerneltable.report(ledger)
    assert report.selections == {ROUTE[0]: 1, ROUTE[1]: 1}
    assert report.failures == {ROUTE[0]: 1}
    assert report.checked == {ROUTE[1]: 1}
    assert report.healthy
    assert capsys.readouterr().out == ""
    kerneltable.report(ledger, show=True)
    printed = capsys.readouterr().out
    assert f"fallback: {ROUTE[0]} -> {ROUTE[1]}: 1" in printed
    assert "RuntimeError: injected" in printed


def test_refusals_of_a_selection_are_counted(table, fakes, ledger):
    a100 = device("a100", table, packages={"torch": "2.11.0", "triton": "3.6.0", "kerneltable": None})
    bind(table, a100, LAYER, layer_tensors(), ledger=ledger)
    refused = ledger.report().refusals
    assert refused[ROUTE[0]] == 1
    assert sum(ledger.report().selections.values()) == 1


def test_plans_share_the_ledger_of_the_process_unless_they_bring_one(table, h200, fakes, plan):
    assert bind(table, h200, LAYER, layer_tensors()).ledger is shared_ledger()
    assert plan.ledger is not shared_ledger()
    assert kerneltable.report().selections == {ROUTE[0]: 1}


def test_a_kernel_may_call_the_plan_that_calls_it(table, h200, fakes, ledger):
    plans = []

    def nested(x: torch.Tensor) -> None:
        fakes.armed = False
        plans[0](rows(7), None)

    fakes.faults[ROUTE[0]] = Fault("nested", "call", nested)
    plans.append(bind(table, h200, LAYER, layer_tensors(), ledger=ledger))
    assert plans[0](rows(5), None).shape == (5, LAYER.n)


def test_threads_that_meet_the_same_broken_constructor_pack_it_once(table, h200, fakes, ledger):
    plan = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    slow = Fault("slow and broken", "pack", lambda *_: time.sleep(0.2) or raising(RuntimeError)())
    fakes.faults |= {ROUTE[0]: RAISES, ROUTE[1]: slow}  # slow: the others wait for it meanwhile
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        plan(rows(5), None)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert fakes.packs[ROUTE[1]] == 1
    assert fakes.packs[ROUTE[2]] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_locks_are_held_can_still_call(table, h200, fakes):
    plan = bind(table, h200, LAYER, layer_tensors())
    lock = partial(plan.ledger.packing, 0)
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with plan.ledger._lock, lock():
            holding.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock().acquire(timeout=5) and plan.ledger._lock.acquire(timeout=5) else 1)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_all_kernels_that_failed_are_in_the_error_with_reasons(plan, fakes):
    fakes.faults |= {ROUTE[0]: RAISES, ROUTE[1]: TWICE, ROUTE[2]: NAMED["constructor gets no compiler"]}
    with pytest.raises(NoKernelError) as caught:
        plan(rows(5), None)
    text = str(caught.value)
    assert "RuntimeError: injected" in text
    assert "wrong numbers: error" in text
    assert f"{KernelUnavailable.__name__}: no C++ compiler was found" in text
