"""`kerneltable check --canary`: each kernel that fits this machine runs in a process of its own, under a time limit.

A kernel that hangs cannot be stopped within its process, and one that crashes takes its process with it. Here it is a
child that is killed, and a finding. With a quarantine the servers of this machine then leave such a kernel alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kerneltable.errors import KernelTableError
from kerneltable.model import Device, Table

if TYPE_CHECKING:
    from kerneltable.run.quarantine import Quarantine
    from kerneltable.select.survey import Proof

CODE = "KT524"
SECONDS = 120.0
DEATH_SECONDS = 10.0
"""How long a killed child may take to go: a driver may have to end a kernel first."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit code (negative: a signal; None: killed, the time was over) and what it wrote."""

    code: int | None
    out: str
    err: str


@dataclass(slots=True)
class Tried:
    """Which kernels were run, and which were not, each with the reason."""

    ran: list[str] = field(default_factory=list)
    idle: dict[str, str] = field(default_factory=dict)


def canaries(
    table: Table,
    files: Sequence[str],
    *,
    seconds: float = SECONDS,
    only: Collection[str] = (),
    quarantine: Quarantine | None = None,
    tried: Tried | None = None,
) -> Iterator[Proof]:
    """KT524 for every kernel of this machine that hangs, crashes, fails or is wrong at the edges of its row.

    files       options that name the table and its overrides, for the children
    seconds     that one kernel may take, with the start of its process and its compiling
    only        kernels to try; empty: all that fit
    quarantine  where kernels that hang or crash are put
    tried       is told which kernels ran
    errors      KernelTableError when not even the device could be asked
    """
    from kerneltable.select.survey import Proof

    device = _device(table, files, seconds)
    tried = Tried() if tried is None else tried
    for kernel, misfit in _fitting(table, device, only):
        ended = None if misfit else run_child(command(kernel, files), seconds)
        if ended is None or ran_nothing(ended):
            tried.idle[kernel] = misfit or "its smallest cases are too large for this machine"
            continue
        tried.ran.append(kernel)
        why = fault_of(ended, kernel, seconds)
        if why is None:
            continue
        if quarantine is not None and (ended.code is None or ended.code < 0):
            quarantine.add(kernel, device, f"canary: {why}")
        message = f"'{kernel}' on {device.name or device.platform}: {why}"
        help = "disable it in an override until it is repaired, or run `kerneltable conformance --kernel` on it"
        yield Proof(CODE, message, table.kernels[kernel].mark, ("kernels", kernel), help)


def command(kernel: str, files: Sequence[str]) -> list[str]:
    """What a child runs: the smallest shapes of the row, against float64."""
    asked = ["conformance", "--kernel", kernel, "--shapes", "1", "--large", "no", "--format", "json"]
    return [sys.executable, "-m", "kerneltable.cli", *asked, *files]


def fault_of(ended: Ended, kernel: str, seconds: float) -> str | None:
    """What the end of a child says against its kernel; None when it is sound."""
    if ended.code is None:
        return f"did not end within {seconds:g} s and was killed: it hangs, or compiles for longer"
    if ended.code < 0:
        return f"its process was ended by {_signal_name(-ended.code)}"
    if ended.code == 0:
        return None
    try:
        (found,) = json.loads(ended.out)["kernels"]
        faults = [f"{case['problem']}: {'; '.join(case['faults'])}" for case in found["cases"] if case["faults"]]
        return (faults or [f"admits what its row excludes: {found['outside']['admitted']}"])[0][:300]
    except (ValueError, KeyError, TypeError, IndexError):
        lines = ended.err.strip().splitlines()
        return f"its process ended with code {ended.code}: {lines[-1][:300] if lines else 'no message'}"


def ran_nothing(ended: Ended) -> bool:
    """Whether a child found no case of its kernel that it could run."""
    try:
        return ended.code == 2 and json.loads(ended.out)["kernels"][0]["cases"] == []
    except (ValueError, KeyError, TypeError, IndexError):
        return False


def run_child(words: Sequence[str], seconds: float) -> Ended:
    """Run a command in a process group of its own, and kill all of it when the time is over."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(child)
        out.seek(0), err.seek(0)
        return Ended(code, out.read(), err.read())


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, and what it started."""
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(DEATH_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        return  # gone already, or held by the driver: nothing more can be done from here


def _device(table: Table, files: Sequence[str], seconds: float) -> Device:
    """This machine's device, asked in a child too, since asking a broken one may hang."""
    from kerneltable.select.facts import read_facts

    ended = run_child([sys.executable, "-m", "kerneltable.cli", "env", "--json", *files], seconds)
    if ended.code != 0:
        why = (
            f"no answer within {seconds:g} s"
            if ended.code is None
            else f"code {ended.code}: {ended.err.strip()[-300:]}"
        )
        raise KernelTableError(f"check --canary: wanted the device's facts from `kerneltable env`; found {why}")
    return read_facts(ended.out, table, "kerneltable env --json")


def _fitting(table: Table, device: Device, only: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each kernel with what keeps it from running on a device; "" for one that accepts something there."""
    from kerneltable.run.checks.conformance_cases import plan_cases

    asked = [kernel for kernel in table.kernels.values() if not only or kernel.id in only]
    for kernel in asked:
        problems, found = plan_cases(table, kernel, device, shapes=1)
        yield kernel.id, "" if problems else "; ".join(found.refused or found.skipped) or "no shape fits"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
