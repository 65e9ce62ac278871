"""A kernel that changes the layer's tensors in a call: they are put back, and the next kernel computes with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from faulty import FULL, LAYER, ROUTE, layer_tensors, rows

from kerneltable.kernels import reference, registry
from kerneltable.run import trial
from kerneltable.run.plan import bind
from run.packing_stand_ins import Tiles, given, once, packing, same_bytes

RIGHT = reference.Kernel


def changing(monkeypatch, change, fail=None) -> None:
    """The first kernel of the route changes what it was given, after its result is right, or raises then."""

    class Changing(RIGHT):
        def __init__(self, problem, **tensors):
            super().__init__(problem, **tensors)
            self.given = tensors

        def __call__(self, x, bias):
            out = super().__call__(x, bias)
            change(self.given | {"bias": bias})
            if fail is not None:
                raise fail
            return out

    monkeypatch.setattr(registry, "load", lambda kernel: Changing if kernel == ROUTE[0] else RIGHT)


CHANGES = {
    "weight": lambda tensors: tensors["weight"].view(torch.uint8).zero_(),
    "weight_scale": lambda tensors: tensors["weight_scale"].mul_(2),
    "bias": lambda tensors: tensors["bias"].add_(1),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("fail", [None, RuntimeError("injected")])
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_kernel_changes_in_its_first_call_is_put_back(table, h200, ledger, monkeypatch, name, fail, inside):
    with torch.inference_mode(inside):
        tensors, bias = layer_tensors(), torch.ones(LAYER.n)
    before = {key: tensor.clone() for key, tensor in (tensors | {"bias": bias}).items()}

    def change(found):  # device code asks nobody
        with torch.inference_mode():
            CHANGES[name](found)

    changing(monkeypatch, change, fail)
    problem = replace(LAYER, bias=True)
    plan = bind(table, h200, problem, tensors, ledger=ledger)
    out = plan(rows(5), bias)
    right = RIGHT(plan.problem, **{key: before[key] for key in tensors})(rows(5), before["bias"])
    assert torch.equal(out, right)
    assert all(same_bytes(tensor, before[key]) for key, tensor in (tensors | {"bias": bias}).items())
    (record,) = ledger.report().set_aside
    assert (record.kernel, record.instead) == (ROUTE[0], ROUTE[1])
    assert (f"it changed {name} of the layer" if fail is None else "injected") in record.reason


def test_a_kernel_that_changes_x_and_the_weight_is_told_of_both(table, h200, ledger, monkeypatch):
    changing(monkeypatch, CHANGES["weight"])
    own = registry.load(ROUTE[0])

    class Both(own):
        def __call__(self, x, bias):
            out = super().__call__(x, bias)
            x.zero_()
            return out

    monkeypatch.setattr(registry, "load", lambda kernel: Both if kernel == ROUTE[0] else RIGHT)
    bind(table, h200, LAYER, layer_tensors(), ledger=ledger)(rows(5), None)
    assert "it changed its input x and weight of the layer" in ledger.report().set_aside[0].reason


def test_without_room_for_copies_of_a_layer_its_first_call_is_checked_without_them(table, h200, ledger, monkeypatch):
    own = torch.Tensor.clone

    def clone(tensor, *args, **options):
        if tensor.dtype == torch.float8_e4m3fn:
            raise torch.OutOfMemoryError(FULL)
        return own(tensor, *args, **options)

    monkeypatch.setattr(registry, "load", lambda kernel: RIGHT)
    plan = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    plan(rows(5), None)
    assert ledger.report().checked == {ROUTE[0]: 1}


def test_a_kernel_that_lacks_the_memory_of_the_copies_has_it_when_it_is_tried_again(table, h200, ledger, monkeypatch):
    alive = []

    class Large(RIGHT):
        def __call__(self, x, bias):
            if alive:
                raise torch.OutOfMemoryError(FULL)
            return super().__call__(x, bias)

    def copied(tensors):
        alive[:] = tensors
        return {}

    monkeypatch.setattr(registry, "load", lambda kernel: Large)
    plan = bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
    monkeypatch.setattr(trial, "copied", copied)
    plan(rows(5), None)
    assert ledger.report().checked == {ROUTE[0]: 1}
    assert ledger.report().set_aside == ()


def test_a_kernel_that_changes_the_packed_copy_of_a_released_layer_leaves_the_layer_whole(monkeypatch):
    class Changing(Tiles):
        def __call__(self, x, bias):
            out = super().__call__(x, bias)
            first = self.packed[0] if isinstance(self.packed, (tuple, list)) else self.packed
            first.view(torch.uint8).zero_()
            return out

    packing(monkeypatch, Changing)
    tensors = given()
    layer = once(tensors)
    assert layer._buffers["weight"] is None
    layer(torch.ones(3, tensors["weight"].shape[1]).bfloat16())
    assert same_bytes(layer.weight, tensors["weight"])
    assert layer.kernel_for(3) == "reference"
