"""kerneltable: one validated table decides which kernel computes a quantized linear layer, and says why.

Importing this package is light: torch, yaml and jsonschema load only when something that needs them is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerneltable.errors import (
        CaptureError,
        CheckpointError,
        ConfigError,
        DeviceLost,
        KernelFault,
        KernelInputError,
        KernelTableError,
        LayerError,
        NoKernelError,
        ProblemError,
    )
    from kerneltable.model import Device, Problem, Refusal, Selection, Table
    from kerneltable.run.checkpoints.checkpoint import load_linears
    from kerneltable.run.compiling import set_compiling
    from kerneltable.run.engine import Engine
    from kerneltable.run.ledger import report
    from kerneltable.run.linear import QuantLinear
    from kerneltable.run.probe import current_device
    from kerneltable.select.select import select
    from kerneltable.table import load_table

__version__ = "0.1.0"
__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "Device",
    "DeviceLost",
    "Engine",
    "KernelFault",
    "KernelInputError",
    "KernelTableError",
    "LayerError",
    "NoKernelError",
    "Problem",
    "ProblemError",
    "QuantLinear",
    "Refusal",
    "Selection",
    "Table",
    "current_device",
    "device",
    "load_linears",
    "load_table",
    "report",
    "select",
    "set_compiling",
]

_WHERE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("Device", "Problem", "Refusal", "Selection", "Table"), "kerneltable.model"),
        **dict.fromkeys(
            (
                "CaptureError",
                "CheckpointError",
                "ConfigError",
                "DeviceLost",
                "KernelFault",
                "KernelInputError",
                "KernelTableError",
                "LayerError",
                "NoKernelError",
                "ProblemError",
            ),
            "kerneltable.errors",
        ),
        "Engine": "kerneltable.run.engine",
        "QuantLinear": "kerneltable.run.linear",
        "current_device": "kerneltable.run.probe",
        "load_linears": "kerneltable.run.checkpoints.checkpoint",
        "load_table": "kerneltable.table",
        "report": "kerneltable.run.ledger",
        "set_compiling": "kerneltable.run.compiling",
    }
)


def device(name: str, table: Table | None = None, *, packages: Mapping[str, str | None] | None = None) -> Device:
    """A device by name ("h200", "sm121", "cuda:13.0"), see kerneltable.select.device; table None is the shipped one."""
    from kerneltable.select import device as named

    if table is None:
        from kerneltable.table import load_table

        table = load_table()
    return named(name, table, packages=packages)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("select", "errors", "model"):
        return import_module(f"kerneltable.{name}")  # the package `select` can be called like the function
    if name not in _WHERE:
        raise AttributeError(f"module 'kerneltable' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
