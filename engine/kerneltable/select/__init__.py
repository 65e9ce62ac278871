"""Deciding: which kernel computes a problem on a device, and what refused every other. Standard library only."""

from __future__ import annotations

import sys
from types import ModuleType

from kerneltable.model import Device, Problem, Selection, Table
from kerneltable.select import explain
from kerneltable.select.devices import device, with_packages
from kerneltable.select.problems import complete
from kerneltable.select.select import refusals, select

__all__ = ["complete", "device", "explain", "refusals", "select", "with_packages"]


class _CallablePackage(ModuleType):
    """Lets `kerneltable.select` be called: Python binds the package over a function of the same name."""

    def __call__(self, table: Table, device: Device | str, problem: Problem) -> Selection:
        return select(table, device, problem)


sys.modules[__name__].__class__ = _CallablePackage
