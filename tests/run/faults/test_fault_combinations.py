"""Every fault, at each place of a list of three kernels, in a first or a later call, from one thread or two at once."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from faulty import FAULTS, LAYER, ORDER, ROUTE, Fakes, Fault, layer_tensors, raising, rows

from kerneltable.errors import CaptureError, DeviceLost, NoKernelError
from kerneltable.kernels import reference, registry
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import Plan, bind
from kerneltable.select import device
from kerneltable.table import load_table

M = 5
BROKEN = Fault("the kernels before it", "call", raising(RuntimeError, "broken before"))
PASSING = {"interrupt": KeyboardInterrupt, "no memory of the host": MemoryError}


@pytest.fixture(scope="module")
def table():
    return load_table(overrides=[("order", ORDER)])


def outcomes(plans: list[Plan], x: torch.Tensor) -> list[object]:
    """What each plan's call gave, all called at once."""
    together = threading.Barrier(len(plans))
    found: list[object] = [None] * len(plans)

    def ask(place: int) -> None:
        own = x.clone()
        together.wait()
        try:
            found[place] = plans[place](own, None)
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a call does not come back"
    return found


def check(found: object, fault: Fault, place: int, right: torch.Tensor) -> None:
    """One call's outcome is the right result or the right error."""
    if fault.follows == "lost":
        assert isinstance(found, DeviceLost), found
    elif fault.follows == "passes":
        assert type(found) is PASSING[fault.name], found
    elif fault.follows == "capture":
        assert isinstance(found, CaptureError), found
        assert ROUTE[place] in str(found)
    elif fault.follows == "memory":
        assert type(found) is torch.OutOfMemoryError, found
        assert ROUTE[place] in found.__notes__[0]
    elif fault.follows == "next" and place == len(ROUTE) - 1:
        assert isinstance(found, NoKernelError), found
        assert all(kernel in str(found) for kernel in ROUTE)
    else:
        assert isinstance(found, torch.Tensor), found
        assert torch.equal(found, right)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("place", range(len(ROUTE)))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_leads_to_right_numbers_or_to_the_right_error(table, monkeypatch, caplog, fault, place, later, threads):
    fakes = Fakes({ROUTE[place]: fault} | dict.fromkeys(ROUTE[:place], BROKEN))
    monkeypatch.setattr(registry, "load", fakes.load)
    h200 = device("h200", table, packages={"torch": "2.11.0", "triton": "3.6.0", "kerneltable": None})
    ledger = Ledger("always" if fault.silent and later else "first")
    tensors, x = layer_tensors(), rows(M)
    right = reference.Kernel(bind(table, h200, LAYER, tensors, ledger=ledger).selection.problem, **tensors)(x, None)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    packing = fault.stage in ("load", "pack")
    fakes.armed = not later
    if packing and later:
        good = bind(table, h200, LAYER, tensors, ledger=ledger)
        assert torch.equal(good(x, None), right)
        ledger.forget()
    fakes.armed = fakes.armed or packing
    plans = []
    try:
        plans = [bind(table, h200, LAYER, tensors, ledger=ledger) for _ in range(threads)]
    except (torch.OutOfMemoryError, CaptureError) as error:
        assert place == 0
        check(error, fault, place, right)
    if later and not packing:
        assert all(torch.equal(plan(x, None), right) for plan in plans for _ in range(4))
    fakes.armed = True
    with caplog.at_level(logging.WARNING):
        for found in outcomes(plans, x) if plans else ():
            check(found, fault, place, right)
        aside = {record.kernel for record in ledger.report().set_aside}
        tried = {kernel: fakes.calls[kernel] for kernel in (ROUTE if fault.follows == "lost" else aside)}
        for found in outcomes(plans, x) if plans and fault.times > 1 else ():
            check(found, fault, place, right)
    assert tried == {kernel: fakes.calls[kernel] for kernel in tried}, "what failed is tried again"
    assert all(torch.equal(tensors[name], before[name]) for name in tensors), "the layer was changed"
    assert aside == {*ROUTE[:place]} | ({ROUTE[place]} if fault.follows == "next" else set())
    told = [r.getMessage().split()[0] for r in caplog.records if "; next: " in r.getMessage()]
    assert sorted(told) == sorted(aside)
    assert ledger.report().healthy is (fault.follows != "lost")
