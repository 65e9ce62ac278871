"""Which Device a tensor's place is, and which place a Device stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelUnavailable, ProblemError
from kerneltable.model import Device, Table
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.run.probe import architecture_at, current_device
from kerneltable.select import device as by_name
from kerneltable.table import load_table

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Run = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Rows [m, k] and bias [n] or None to [m, n]."""

PLAIN = ("cpu", "meta")
"""Types of place without a current device or streams."""

TORCH_TYPES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu"}
"""platform of the table -> device type of torch."""


def torch_device(device: Device) -> torch.device:
    """Where tensors for this device belong.

    errors   ProblemError when this torch has no such device: a layer cannot be put there
    """
    kind = TORCH_TYPES.get(device.platform)
    if kind is None or (kind != "cpu" and not torch.get_device_module(kind).is_available()):
        raise ProblemError(
            f"device '{device.name or device.platform}' cannot be used here: torch sees no {device.platform} device; "
            "leave the device out for the present one, or ask `kerneltable explain` what it would run"
        )
    return torch.device(kind) if kind == "cpu" else torch.device(kind, device.index or 0)


def device_for(where: torch.device, table: Table) -> Device:
    """The Device of tensors that are at `where`, probed; for tensors without a place (meta) that of this machine."""
    if where.type == "cpu":
        return current_device(table, platform="cpu")
    if where.type == "meta":
        return current_device(table)
    return current_device(table, where.index or 0)


def present_device(device: Device | str | None, table: Table) -> Device:
    """A Device as given; by a name of the table; "cpu" or another platform: the present one; None: this machine's.

    errors   ProblemError for an unknown name, or a platform that this machine does not have
    """
    if isinstance(device, Device):
        return device
    if device is None:
        return current_device(table)
    if device in TORCH_TYPES:
        found = current_device(table, platform="cpu") if device == "cpu" else current_device(table)
        if found.platform != device:
            raise ProblemError(
                f"device '{device}': this machine has platform {found.platform}; name one of its devices"
            )
        return found
    named = by_name(device, table)
    present = current_device(table)
    return replace(named, packages=present.packages, ops=present.ops) if named.platform == present.platform else named


def chip_for(table: Table, device: Device, where: torch.device) -> CudaChip | None:
    """What device code in CUDA knows of a device whose tensors are at `where`; None where there is no such code.

    errors   KernelUnavailable when the table says too little of the chip
    """
    platform = table.platforms.get(device.platform)
    if where.type != "cuda" or device.platform != "cuda" or platform is None or device.architecture is None:
        return None
    units = torch.cuda.get_device_properties(where).multi_processor_count
    return cuda_chip(platform.architectures[device.architecture], units)


def features_of(table: Table, device: Device) -> frozenset[str]:
    """What the table says that a device's chip can do; none where it does not know the chip."""
    platform = table.platforms.get(device.platform)
    if platform is None or device.architecture is None:
        return frozenset()
    return platform.architectures[device.architecture].features


def check_place(device: Device, where: torch.device, table: Table | None = None) -> str | None:
    """Why tensors at `where` cannot be computed by this device; None when they can.

    table   which architecture the chip there is; None: the device was found there, so it is that chip
    """
    wanted = TORCH_TYPES.get(device.platform)
    if where.type == wanted:
        if where.type == "cpu":
            return None
        if device.index in (None, where.index):
            return None if table is None else _other_chip(device, where, table)
        return (
            f"the layer is bound for {wanted}:{device.index} ({device.name or device.architecture}) and its tensors "
            f"are on {where}; move them back, or build the layer without a device, to be packed where its tensors are"
        )
    return (
        f"the layer is bound for {device.name or device.platform} ({device.platform}) and its tensors are on {where}; "
        f"move them with .to('{wanted}'), or leave the device out"
    )


def _other_chip(device: Device, where: torch.device, table: Table) -> str | None:
    """Why a GPU cannot run what is compiled for this device: it is another chip, of those that the table knows."""
    present = architecture_at(where.index or 0, table)
    if None in (device.architecture, present) or device.architecture == present:
        return None
    return (
        f"the layer is bound for {device.name or device.platform} ({device.architecture}) and its tensors are on "
        f"{where}, which is {present}; leave the device out to be packed for the chip that they are on"
    )


def on_device(call: Run, where: torch.device) -> Run:
    """call with `where` as the current device: launches go to the current one, whatever the tensors say."""
    if where.type in PLAIN:
        return call
    module = torch.get_device_module(where)
    if module.device_count() < 2:
        return call

    def run(rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if module.current_device() == where.index:
            return call(rows, bias)
        with module.device(where):
            return call(rows, bias)

    return run


def forked_away(where: torch.device) -> KernelUnavailable | None:
    """The error to raise in a forked child whose parent had used the device; None where it can be used."""
    if where.type in PLAIN or not getattr(torch.get_device_module(where), "_is_in_bad_fork", bool)():
        return None
    return KernelUnavailable(
        f"{where} cannot be used in a forked process whose parent had used it; start the process with the method "
        "'spawn' or 'forkserver'"
    )


@contextmanager
def packing_on(where: torch.device) -> Iterator[None]:
    """Pack for a device: as the current one, for use in and out of inference mode, done before any stream goes on."""
    module = None if where.type in PLAIN else torch.get_device_module(where)
    current: AbstractContextManager[object] = nullcontext() if module is None else module.device(where)
    with current, torch.inference_mode(False), torch.no_grad():
        yield
        if module is not None:
            module.current_stream(where).synchronize()


@cache
def shipped_table() -> Table:
    """The shipped table, which never changes: read once."""
    return load_table()
