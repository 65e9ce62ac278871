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
from kerneltable.ops.settings import active
from kerneltable.run.checks.building import (
    Built,
    Job,
    build,
    chips_of,
    cuda_instances_of,
    cuda_jobs,
    host_jobs,
    missing_compiler,
    products_of,
    rows_with_code,
)
from kerneltable.select.survey import Proof

SECONDS = 900
"""What one Triton kernel may take for all architectures."""

FEW = 2
"""Instances of a CUDA source that are compiled for each architecture; `kerneltable build` compiles all."""

SHAPES = ((16, 16), (4096, 7168), (24576, 1536), (576, 7168))
"""(n, k) of the layers whose instances these are."""

TRITON_PLATFORMS = ("cuda", "rocm")


def compile_own(table: Table) -> Iterator[Proof]:
    """csrc, for the rows that use it and each architecture that they admit: a few instances of each source."""
    jobs = host_jobs(table)
    chips = table.platforms["cuda"].architectures if "cuda" in table.platforms else {}
    asked = cuda_instances_of(rows_with_code(table, chips), products_of(SHAPES))
    for name, chip in chips.items():
        try:
            jobs += cuda_jobs(table, name, asked, FEW)
        except KernelUnavailable as error:
            path = ("platforms", "cuda", "architectures", name)
            yield Proof("KT522", str(error), chip.mark, path, "complete the architecture")
    missing = [job for job in jobs if _why_not(job)]
    for kernel, why in {kernel: _why_not(job) for job in missing for kernel in job.kernels}.items():
        yield _unchecked(table.kernels[kernel], why)
    try:
        for built in build([job for job in jobs if job not in missing], active()):
            yield from _faults(table, built)
    except KernelUnavailable as error:
        yield from (_unchecked(table.kernels[kernel], str(error)) for job in jobs for kernel in job.kernels)


def _why_not(job: Job) -> str:
    """Why nothing can be compiled for a job here, or ""."""
    return missing_compiler([job]) if active().compile else "compiling is switched off"


def _faults(table: Table, built: Built) -> Iterator[Proof]:
    for kernel in built.job.kernels if built.errors else ():
        yield _broken(table.kernels[kernel], f"on {built.job.architecture}: {built.errors[0]}")


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
        chips = chips_of(table, kernel, TRITON_PLATFORMS) if kernel.id in KERNELS else []
        if chips:
            yield from _compiled(kernel, chips, environment)


def _compiled(kernel: Kernel, chips: list[Architecture], environment: Mapping[str, str]) -> Iterator[Proof]:
    """One process a kernel: it replaces Triton's driver, and the interpreter must be off."""
    targets = [
        {
            "name": chip.name,
            "capability": chip.capability,
            "shared_memory_kib": chip.shared_memory_kib,
            "features": sorted(chip.features),
        }
        for chip in chips
    ]
    package = str(Path(__file__).parents[3])
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
