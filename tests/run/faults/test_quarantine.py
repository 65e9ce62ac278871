"""Kernels that lost a device are left alone by the next process: R08. What is in the folder is read as data only."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from faulty import LAYER, LOST, RAISES, ROUTE, layer_tensors, rows

from kerneltable.errors import DeviceLost, KernelFault, KernelTableError
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import bind
from kerneltable.run.quarantine import Quarantine


def plan_of(table, device, folder, **more):
    """A plan in a process of its own, as far as memory goes: a new ledger that reads the folder."""
    ledger = Ledger()
    ledger.keep(Quarantine(folder))
    return bind(table, device, LAYER, layer_tensors(), ledger=ledger, **more), ledger


@pytest.fixture
def folder(tmp_path, table, h200, fakes):
    """A folder after a process that lost its device in the first kernel."""
    place = tmp_path / "quarantine"
    fakes.faults[ROUTE[0]] = LOST
    plan, ledger = plan_of(table, h200, place)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        plan(rows(5), None)
    assert not ledger.report().healthy
    return place


def test_the_next_process_takes_the_next_kernel_and_says_why(table, h200, fakes, folder, caplog):
    called = fakes.calls[ROUTE[0]]
    plan, ledger = plan_of(table, h200, folder)
    with caplog.at_level(logging.WARNING, logger="kerneltable"):
        out = plan(rows(5), None)
        plan(rows(600), None)
    assert torch.equal(out, bind(table, h200, LAYER, layer_tensors(), "reference", Ledger())(rows(5), None))
    assert plan.id_for(5) == plan.kernel == ROUTE[1]
    assert fakes.calls[ROUTE[0]] == called
    assert ledger.report().healthy
    (record,) = ledger.report().set_aside
    assert (record.kernel, record.stage) == (ROUTE[0], "quarantine")
    assert "the device was lost" in record.reason
    assert sum("quarantine" in line.message for line in caplog.records) == 1


def test_without_the_folder_nothing_is_remembered(table, h200, fakes, folder):
    fakes.armed = False
    assert bind(table, h200, LAYER, layer_tensors(), ledger=Ledger()).id_for(5) == ROUTE[0]


@pytest.mark.parametrize(
    "change", [{"architecture": "sm120"}, {"name": "NVIDIA H100"}, {"packages": {"torch": "2.12.0", "triton": "3.6.0"}}]
)
def test_another_kind_of_device_and_other_packages_are_not_spoken_for(h200, folder, change):
    found = Quarantine(folder)
    assert found.why(ROUTE[0], h200) is not None
    assert found.why(ROUTE[0], replace(h200, index=3)) is not None
    assert found.why(ROUTE[0], replace(h200, **change)) is None
    assert found.why(ROUTE[1], h200) is None


def test_deleting_the_entry_lets_the_kernel_be_tried_again(table, h200, fakes, folder):
    (entry,) = folder.iterdir()
    entry.unlink()
    fakes.armed = False
    assert plan_of(table, h200, folder)[0].id_for(5) == ROUTE[0]


def test_forgetting_in_the_process_does_not_end_a_quarantine(table, h200, folder):
    plan, ledger = plan_of(table, h200, folder)
    plan(rows(5), None)
    ledger.forget()
    assert plan.id_for(5) == ROUTE[1]


def test_a_required_kernel_is_tried_all_the_same(table, h200, fakes, folder):
    fakes.faults[ROUTE[0]] = RAISES
    with pytest.raises(KernelFault, match="injected"):
        plan_of(table, h200, folder, force=ROUTE[0])[0](rows(5), None)


def test_a_kernel_that_only_raises_is_not_remembered(tmp_path, table, h200, fakes):
    fakes.faults[ROUTE[0]] = RAISES
    plan_of(table, h200, tmp_path / "q")[0](rows(5), None)
    assert list((tmp_path / "q").iterdir()) == []


def test_two_losses_of_one_kernel_are_one_entry(table, h200, folder):
    Quarantine(folder).add(ROUTE[0], h200, "again")
    assert len(list(folder.iterdir())) == len(Quarantine(folder).entries) == 1


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"format": 2}', b'{"format": 1, "kernel": "x"}', b"[" * 30000, b'"\xff"']
)
def test_a_file_that_is_no_entry_is_left_out_and_named(h200, folder, content, caplog):
    stray = folder / "stray.json"
    stray.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = Quarantine(folder)
    assert found.why(ROUTE[0], h200) is not None
    assert str(stray) in caplog.text


def test_values_of_other_types_are_left_out(h200, folder):
    (entry,) = folder.iterdir()
    facts = json.loads(entry.read_text())
    entry.write_text(json.dumps({**facts, "versions": [1]}))
    assert Quarantine(folder).entries == ()


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(KernelTableError, match="can be written by others"):
        Quarantine(tmp_path)


def test_a_folder_that_has_gone_does_not_hide_the_lost_device(table, h200, fakes, tmp_path, caplog):
    fakes.faults[ROUTE[0]] = LOST
    plan, _ = plan_of(table, h200, tmp_path / "q")
    (tmp_path / "q").rmdir()
    with pytest.raises(DeviceLost):
        plan(rows(5), None)
    assert "not kept in quarantine" in caplog.text
