"""Each test starts with a process that remembers no failed kernel."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _fresh_ledger():
    """Forget the ledger that a process shares, if a test before loaded it."""
    ledger = sys.modules.get("kerneltable.run.ledger")
    if ledger is not None:
        ledger._SHARED = ledger.Ledger()
