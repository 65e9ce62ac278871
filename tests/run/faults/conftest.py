"""One layer, a list of three fake kernels, and a ledger of its own."""

from __future__ import annotations

import pytest
from faulty import LAYER, ORDER, Fakes, layer_tensors

from kerneltable.kernels import registry
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import bind
from kerneltable.select import device
from kerneltable.table import load_table


@pytest.fixture(scope="module")
def table():
    return load_table(overrides=[("order", ORDER)])


@pytest.fixture
def h200(table):
    return device("h200", table, packages={"torch": "2.11.0", "triton": "3.6.0", "kerneltable": None})


@pytest.fixture
def fakes(monkeypatch):
    found = Fakes(armed=True)
    monkeypatch.setattr(registry, "load", found.load)
    return found


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def plan(table, h200, fakes, ledger):
    return bind(table, h200, LAYER, layer_tensors(), ledger=ledger)
