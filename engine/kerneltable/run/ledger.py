"""What has happened so far: kernels set aside, kernels whose numbers were checked, devices lost, and counters.

One Ledger serves a process, unless a caller brings its own: a kernel that fails for one layer is broken for every
layer of the same shape class, whatever table named it. Plans read `generation` at each call and look again when it
has moved; everything else happens on slow paths, under one lock that is never held while a kernel or a logger runs.
Packing has locks of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from kerneltable.errors import DeviceLost
from kerneltable.model import Device, Problem

if TYPE_CHECKING:
    from kerneltable.run.quarantine import Quarantine

BANDS = (1, 16, 128, 1024)
"""Largest m of each band of a shape class; the last band has no end. Kernels change their code about there."""

VERIFY = ("first", "always", "never")
PACKING_LOCKS = 61


def band_of(m: int) -> int:
    """Which band of rows m belongs to: 0 is one row, 1 is 2 to 16, 2 is 17 to 128, 3 is 129 to 1024, 4 the rest."""
    return bisect_left(BANDS, m)


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """The calls that a failure speaks for. problem None: any layer; band None: any m; `problem.m` is None.

    alone   of the layers with this problem only those whose weights it was; each knows for itself
    """

    problem: Problem | None = None
    band: int | None = None
    alone: bool = False

    def __str__(self) -> str:
        if self.problem is None:
            return "every layer"
        layer = f"{self.problem.scheme} n={self.problem.n} k={self.problem.k} input={self.problem.input}"
        if self.band is None:
            return f"one layer of {layer}" if self.alone else layer
        ends = (0, *BANDS)
        least = ends[self.band] + 1
        return f"{layer} m={least}{f'-{BANDS[self.band]}' if self.band < len(BANDS) else ' and more'}"


@dataclass(frozen=True, slots=True)
class SetAside:
    """A kernel that is not tried again for a device and shape class, why, and what took over (None: nothing)."""

    kernel: str
    device: Device
    shapes: ShapeClass
    stage: str
    reason: str
    instead: str | None

    def __str__(self) -> str:
        return f"{self.kernel} is set aside for {self.shapes} on {named(self.device)}: {self.stage}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """Counters of a process so far.

    selections   kernel -> layers (or bands of m of a layer) that it was bound to
    refusals     kernel -> times that a selection refused it
    failures     kernel -> times that it failed to load, pack or run, or was wrong
    fallbacks    (kernel, kernel that took over) -> times
    checked      kernel -> calls held against the reference and found right
    unchecked    kernel -> calls that could not be held against it
    set_aside    what is not tried again
    lost         device -> why nothing runs on it any more
    """

    selections: Mapping[str, int]
    refusals: Mapping[str, int]
    failures: Mapping[str, int]
    fallbacks: Mapping[tuple[str, str], int]
    checked: Mapping[str, int]
    unchecked: Mapping[str, int]
    set_aside: tuple[SetAside, ...]
    lost: Mapping[Device, str]

    @property
    def healthy(self) -> bool:
        """False once a device is lost: this process must be started again."""
        return not self.lost

    def __str__(self) -> str:
        names = sorted({*self.selections, *self.refusals, *self.failures, *self.checked, *self.unchecked})
        columns = (self.selections, self.refusals, self.failures, self.checked, self.unchecked)
        heads = ("selected", "refused", "failed", "checked", "unchecked")
        width = max(6, *map(len, names)) if names else 6
        lines = [f"{'kernel':<{width}} {' '.join(f'{head:>9}' for head in heads)}"]
        lines += [f"{name:<{width}} {' '.join(f'{column.get(name, 0):>9}' for column in columns)}" for name in names]
        lines += [f"fallback: {one} -> {other}: {n}" for (one, other), n in sorted(self.fallbacks.items())]
        lines += [str(record) for record in self.set_aside]
        lines += [f"lost: {named(device)}: {why}" for device, why in self.lost.items()]
        return "\n".join(lines)


class Ledger:
    """The memory of what failed, what was checked and what was counted; safe under threads.

    verify        "first": each kernel's first call for a device, a scheme's details and a band of m is held against
                  the reference; "always": every call, which then runs twice; "never": only the form of results
    synchronize   True: wait for the device after every call, so that an asynchronous error names its kernel
    generation    moves whenever something is set aside, lost or forgotten
    """

    def __init__(self, verify: str = "first", *, synchronize: bool = False) -> None:
        if verify not in VERIFY:
            raise ValueError(f"verify must be one of {', '.join(VERIFY)}; found {verify!r}")
        self.verify = verify
        self.synchronize = synchronize
        self.generation = 0
        self._checked: set[tuple[str, Device, Problem, int]] = set()
        self._aside: dict[tuple[str, Device, ShapeClass], SetAside] = {}
        self._lost: dict[Device, str] = {}
        self._quarantine: Quarantine | None = None
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._counts: dict[str, Counter[str]] = {}
        self.renew_locks()

    def renew_locks(self) -> None:
        """New locks, for a child process: a thread of the parent may have held the old ones when it forked."""
        self._lock = threading.Lock()
        self._packing = tuple(threading.RLock() for _ in range(PACKING_LOCKS))

    def packing(self, address: int) -> threading.RLock:
        """The lock to hold while tensors at an address are packed: by one plan at a time, other layers meanwhile."""
        return self._packing[(address >> 12) % PACKING_LOCKS]

    # --- Kernels that failed --------------------------------------------------------------------------------------

    def aside(self, kernel: str, device: Device, problem: Problem, band: int | None) -> SetAside | None:
        """Why a kernel is not tried for m of this band; None when it is. problem is completed, its m None."""
        if self._quarantine is not None:
            self._leave_alone(self._quarantine, kernel, device)
        if not self._aside:
            return None
        places = (ShapeClass(), ShapeClass(problem), ShapeClass(problem, band))
        return next((record for p in places if (record := self._aside.get((kernel, device, p))) is not None), None)

    def set_aside(self, record: SetAside) -> bool:
        """Remember a failure; True for the first of its kernel, device and shape class: that one is to be told."""
        key = (record.kernel, record.device, record.shapes)
        with self._lock:
            self._counts.setdefault("failures", Counter())[record.kernel] += 1
            if record.instead is not None:
                self._fallbacks[record.kernel, record.instead] += 1
            new = key not in self._aside
            if new:
                self._aside[key] = record
                self.generation += 1
        if new:
            say(logging.WARNING, "%s; next: %s", record, record.instead or "none")
        return new

    def keep(self, quarantine: Quarantine) -> None:
        """From now on leave alone what is in a quarantine on disk, and put there what loses a device."""
        with self._lock:
            self._quarantine = quarantine
            self.generation += 1

    def _leave_alone(self, quarantine: Quarantine, kernel: str, device: Device) -> None:
        """Set a kernel aside that an earlier process put in quarantine, and say so once."""
        key = (kernel, device, ShapeClass())
        why = None if key in self._aside else quarantine.why(kernel, device)
        if why is None:
            return
        record = SetAside(kernel, device, ShapeClass(), "quarantine", why, None)
        with self._lock:
            new = self._aside.setdefault(key, record) is record
        if new:
            say(logging.WARNING, "%s", record)

    def forget(self) -> None:
        """Try every kernel again, and check it again; counters and lost devices stay."""
        with self._lock:
            self._aside.clear()
            self._checked.clear()
            self.generation += 1

    # --- Devices that are gone ------------------------------------------------------------------------------------

    def lose(self, device: Device, why: str, kernel: str | None = None) -> DeviceLost:
        """Mark a device as lost, and give the error to raise; kernel: where the error came to light, for quarantine."""
        with self._lock:
            new = device not in self._lost
            self._lost.setdefault(device, why)
            self.generation += 1
        if new:
            say(logging.ERROR, "%s is lost: %s", named(device), why)
            if kernel is not None and self._quarantine is not None:
                self._quarantine.add(kernel, device, f"the device was lost: {why}")
        return self.loss_of(device) or DeviceLost(why)

    def loss_of(self, device: Device) -> DeviceLost | None:
        """The error to raise for every use of a lost device; None for a healthy one."""
        why = self._lost.get(device)
        if why is None:
            return None
        return DeviceLost(
            f"{named(device)} is lost since this error: {why}; nothing runs on it in this process any more: start it "
            "again; Ledger(synchronize=True) then names the kernel"
        )

    # --- Checks and counters --------------------------------------------------------------------------------------

    def is_checked(self, kernel: str, device: Device, problem: Problem, band: int) -> bool:
        """Whether the numbers of a kernel were checked for these details of a scheme, whatever n, k and bias."""
        return (kernel, device, _details(problem), band) in self._checked

    def passed(self, kernel: str, device: Device, problem: Problem, band: int, unchecked: str | None = None) -> None:
        """A call was within its bound, or for this reason could not be held against the reference here."""
        key = (kernel, device, _details(problem), band)
        with self._lock:
            new = key not in self._checked
            self._checked.add(key)
            self._counts.setdefault("unchecked" if unchecked else "checked", Counter())[kernel] += 1
        if unchecked and new:
            shapes = ShapeClass(problem, band)
            say(logging.WARNING, "%s ran unchecked for %s on %s: %s", kernel, shapes, named(device), unchecked)

    def count(self, what: str, kernel: str) -> None:
        """Count one of selections, refusals, failures."""
        with self._lock:
            self._counts.setdefault(what, Counter())[kernel] += 1

    def report(self) -> Report:
        """The state of now, as a value."""
        with self._lock:
            counts = {name: MappingProxyType(dict(counter)) for name, counter in self._counts.items()}
            fallbacks = MappingProxyType(dict(self._fallbacks))
            aside, lost = tuple(self._aside.values()), MappingProxyType(dict(self._lost))
        names = ("selections", "refusals", "failures", "checked", "unchecked")
        found = {name: counts.get(name, MappingProxyType({})) for name in names}
        return Report(**found, fallbacks=fallbacks, set_aside=aside, lost=lost)


def shared_ledger() -> Ledger:
    """The ledger of this process, for callers that bring none."""
    return _SHARED


def report(ledger: Ledger | None = None, *, show: bool = False) -> Report:
    """Counters of selections, refusals, fallbacks and failures; ledger None: those of this process.

    show   print them as a table too
    """
    found = (ledger or shared_ledger()).report()
    if show:
        print(found)
    return found


def named(device: Device) -> str:
    """A device as people say it: its name and its chip."""
    place = f"{device.platform}:{device.architecture or 'unknown'}"
    index = "" if device.index is None else f" #{device.index}"
    return f"{device.name} ({place}){index}" if device.name else f"{place}{index}"


def say(level: int, text: str, *values: object) -> None:
    """Log one line. What a filter or handler of the application raises must not break a call of a layer."""
    try:
        logging.getLogger("kerneltable").log(level, text, *values)
    except Exception:  # the call goes on; the failure stays visible in report()
        return


def _details(problem: Problem) -> Problem:
    return replace(problem, n=0, k=0, m=None, bias=False)


def _after_fork() -> None:
    _SHARED.renew_locks()


_SHARED = Ledger()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
