"""Compiling all device code of a table, for every architecture that its rows name, as far as this machine can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kerneltable.errors import KernelUnavailable
from kerneltable.model import Architecture, Kernel, Table
from kerneltable.select.survey import Proof

SECONDS = 900
"""What one Triton kernel may take for all architectures."""

OWN_CODE = ("hopper_", "cpu_")
TRITON_PLATFORMS = ("cuda", "rocm")


def compile_own(table: Table) -> Iterator[Proof]:
    """csrc, for the rows that use it; each row once."""
    for kernel in table.kernels.values():
        prefix = next((prefix for prefix in OWN_CODE if kernel.id.startswith(prefix)), None)
        if prefix is None:
            continue
        missing = _missing_compiler(prefix)
        try:
            if missing:
                yield _unchecked(kernel, missing)
            elif prefix == "cpu_":
                _compile_cpp()
            else:
                _compile_cuda()
        except KernelUnavailable as error:
            yield _broken(kernel, str(error))


def _missing_compiler(prefix: str) -> str:
    """Why the compiler that the code needs is not here, or ""."""
    if prefix == "cpu_":
        from kerneltable.ops.cpp import find_compiler

        found = find_compiler()
        return found if isinstance(found, str) else ""
    from kerneltable.ops.nvrtc import find_nvrtc

    nvrtc = find_nvrtc()
    return nvrtc if isinstance(nvrtc, str) else ""


def _compile_cpp() -> None:
    from kerneltable.ops.cpp import compiled, find_compiler
    from kerneltable.ops.settings import active

    compiled("cpu/fp8_linear.cpp", active(), find_compiler())


def _compile_cuda() -> None:
    from kerneltable.ops.hopper_instances import compile_few
    from kerneltable.ops.settings import active

    compile_few(active())


def compile_triton(table: Table, environment: Mapping[str, str]) -> Iterator[Proof]:
    """Each Triton kernel for every architecture that its row admits and Triton has a compiler for.

    environment   variables for the processes that compile
    """
    try:
        from kerneltable.ops.triton_offline import KERNELS
    except ImportError as error:
        for kernel in table.kernels.values():
            if kernel.id.startswith("triton_"):
                yield _unchecked(kernel, f"Triton is not here: {error}")
        return
    for kernel in table.kernels.values():
        chips = _admitted(table, kernel) if kernel.id in KERNELS else []
        if chips:
            yield from _compiled(kernel, chips, environment)


def _admitted(table: Table, kernel: Kernel) -> list[Architecture]:
    from kerneltable.select.devices import device
    from kerneltable.select.select import device_refusals

    found = []
    for platform in TRITON_PLATFORMS:
        chips = table.platforms[platform].architectures.values() if platform in table.platforms else ()
        found += [c for c in chips if not device_refusals(table, kernel, device(f"{platform}:{c.name}", table))]
    return found


def _compiled(kernel: Kernel, chips: list[Architecture], environment: Mapping[str, str]) -> Iterator[Proof]:
    """One process a kernel: it replaces Triton's driver, and the interpreter must be off."""
    targets = [
        {
            "name": chip.name,
            "platform": chip.platform,
            "capability": chip.capability,
            "shared_memory_kib": chip.shared_memory_kib,
        }
        for chip in chips
    ]
    package = str(Path(__file__).parents[2])
    without = {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}
    search = os.pathsep.join(filter(None, (package, without.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "kerneltable.ops.triton_offline", kernel.id, json.dumps(targets)]
    try:
        said = subprocess.run(
            command,
            env={**without, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield _unchecked(kernel, f"the compilation did not end: {type(error).__name__}")
        return
    rows = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    if said.returncode:
        reached = rows[-1]["architecture"] if rows else chips[0].name
        last = said.stderr.strip().splitlines()[-1] if said.stderr.strip() else f"exit status {said.returncode}"
        yield _broken(kernel, f"at {reached} or the architecture after it: {last[:300]}")
        return
    yield from _judged(kernel, chips, rows)


def _judged(kernel: Kernel, chips: Iterable[Architecture], rows: list[dict[str, Any]]) -> Iterator[Proof]:
    """Architectures that this Triton does not know, and code that wants more shared memory than there is."""
    unknown = sorted({row["architecture"] for row in rows if row.get("unknown_to_triton")})
    if unknown:
        yield _unchecked(kernel, f"this Triton does not know {', '.join(unknown)}")
    limits = {chip.name: chip.shared_memory_kib for chip in chips}
    for row in rows:
        limit = limits.get(row["architecture"])
        if limit is not None and row.get("shared", 0) > limit * 1024:
            text = f"{row['function']} wants {row['shared']} bytes of shared memory on {row['architecture']}"
            yield _broken(kernel, f"{text}, which has {limit} KiB")


def _broken(kernel: Kernel, reason: str) -> Proof:
    message = f"'{kernel.id}' does not compile: {reason}"
    return Proof(
        "KT522", message, kernel.mark, ("kernels", kernel.id), "correct the code, or narrow the row's `runs_on`"
    )


def _unchecked(kernel: Kernel, reason: str) -> Proof:
    message = f"'{kernel.id}' was not compiled here: {reason}"
    return Proof(
        "KT523", message, kernel.mark, ("kernels", kernel.id), "check it on a machine that has what is missing"
    )
