"""Compiling device code ahead of time: every instance that rows of a table can ask for on its chips, into the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from signal import SIG_IGN, SIGINT, signal

from kerneltable.errors import KernelTableError, KernelUnavailable
from kerneltable.model import Architecture, Kernel, Table
from kerneltable.ops import cuda_instances
from kerneltable.ops.cache_entry import folder_fault
from kerneltable.ops.cpp import compiled as compiled_cpp
from kerneltable.ops.cpp import find_compiler
from kerneltable.ops.cpu_fp8 import SOURCE as CPU_SOURCE
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.cuda_code import Instance, Product, compiled
from kerneltable.ops.nvrtc import find_nvrtc
from kerneltable.ops.settings import CompileSettings
from kerneltable.select import device, with_packages
from kerneltable.select.select import device_refusals

HOST = "host"
"""Stands for the processor of this machine, for which the C++ of csrc/cpu is compiled."""

CPP_SOURCES = {"cpu_fp8": CPU_SOURCE, "cpu_fp8_amx": CPU_SOURCE}
"""Kernel id -> its file of csrc."""

FEW = 6
"""With fewer instances than this for each process, starting one takes longer than it saves."""


@dataclass(frozen=True, slots=True)
class Job:
    """One source for one chip.

    file       below csrc
    chip       None: this machine's processor
    kernels    the rows that launch it
    instances  empty for C++, which has no compile-time numbers
    """

    file: str
    chip: CudaChip | None
    kernels: tuple[str, ...]
    instances: tuple[Instance, ...]

    @property
    def architecture(self) -> str:
        """The table's name of the chip, or "host"."""
        return HOST if self.chip is None else self.chip.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """One binary: its bytes, whether it was compiled now, seconds it took; or why there is none."""

    size: int
    fresh: bool
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Built:
    """A job with the outcome of each of its instances, in their order."""

    job: Job
    outcomes: tuple[Outcome, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """The compiler's words, each once."""
        return tuple(dict.fromkeys(one.error for one in self.outcomes if one.error))

    def count(self, *, fresh: bool) -> int:
        """How many were compiled now, or found."""
        return sum(one.fresh is fresh for one in self.outcomes if not one.error)


def products_of(shapes: Iterable[tuple[int, int]] | None, multiprocessors: int | None = None) -> list[Product]:
    """What may be asked of weights of these (n, k), of any number of rows; shapes None: of weights of any size.

    multiprocessors   of the device; None: any
    """
    if shapes is None:
        return cuda_instances.usual(multiprocessors)
    return cuda_instances.of_shapes(shapes, multiprocessors)


def chips_of(table: Table, kernel: Kernel, platforms: Iterable[str]) -> list[Architecture]:
    """The architectures that a row admits, in the table's order, whatever is installed here or there."""
    known = [table.platforms[name] for name in platforms if name in table.platforms]
    chips = [chip for platform in known for chip in platform.architectures.values()]
    asked = ((chip, with_packages(device(f"{chip.platform}:{chip.name}", table), "all")) for chip in chips)
    return [chip for chip, everything in asked if not device_refusals(table, kernel, everything)]


def rows_with_code(table: Table, architectures: Iterable[str]) -> list[str]:
    """The rows with device code in CUDA that run on one of these architectures of platform cuda."""
    names = set(architectures)
    rows = [kernel for kernel in table.kernels if kernel in cuda_instances.MODULES]
    return [row for row in rows if names & {chip.name for chip in chips_of(table, table.kernels[row], ["cuda"])}]


def cuda_instances_of(
    rows: Iterable[str], products: Sequence[Product], dtypes: Sequence[tuple[str, str]] = (("bf16", "bf16"),)
) -> dict[str, list[Instance]]:
    """Row -> every instance that it asks for.

    rows       as rows_with_code gives them
    products   sizes that may be asked for, see products_of
    dtypes     of input and output
    """
    return {kernel: cuda_instances.instances(kernel, products, dtypes) for kernel in rows}


def cuda_jobs(
    table: Table, architecture: str, asked: Mapping[str, Sequence[Instance]], most: int | None = None
) -> list[Job]:
    """What these rows need on an architecture of platform cuda; none where none of them runs.

    asked     as cuda_instances_of gives it
    most      at most as many instances of a source; None: all
    errors    KernelUnavailable for a chip with such rows whose description has no `target` or `shared_memory_kib`
    """
    users: dict[Instance, list[str]] = {}
    for kernel, instances in asked.items():
        here = {chip.name for chip in chips_of(table, table.kernels[kernel], ["cuda"])}
        for instance in instances if architecture in here else ():
            users.setdefault(instance, []).append(kernel)
    if not users:
        return []
    chip = cuda_chip(table.platforms["cuda"].architectures[architecture], 0)
    every = sorted(users, key=lambda one: (one.file, one.defines))
    few = every if most is None else cuda_instances.spread(every, most)
    jobs = []
    for file in dict.fromkeys(one.file for one in few):
        kernels = dict.fromkeys(kernel for one in every if one.file == file for kernel in users[one])
        jobs.append(Job(file, chip, tuple(kernels), tuple(one for one in few if one.file == file)))
    return jobs


def host_jobs(table: Table) -> list[Job]:
    """What rows of the table need on this machine's processor."""
    users: dict[str, list[str]] = {}
    for kernel, file in CPP_SOURCES.items():
        if kernel in table.kernels:
            users.setdefault(file, []).append(kernel)
    return [Job(file, None, tuple(kernels), ()) for file, kernels in users.items()]


def missing_compiler(jobs: Iterable[Job]) -> str:
    """Why a compiler that these jobs need is not here, or ""."""
    jobs = tuple(jobs)
    nvrtc = find_nvrtc() if any(job.chip is not None for job in jobs) else None
    cpp = find_compiler() if any(job.chip is None for job in jobs) else None
    return "; ".join(found for found in (nvrtc, cpp) if isinstance(found, str))


def divided(jobs: Iterable[Job]) -> tuple[list[Job], list[Built]]:
    """The jobs whose compiler is here, and the others, each instance failed with the reason."""
    jobs = tuple(jobs)
    kinds = ([job for job in jobs if job.chip is not None], [job for job in jobs if job.chip is None])
    why = [missing_compiler(kind) for kind in kinds]
    lacking = {job: missing for kind, missing in zip(kinds, why, strict=True) if missing for job in kind}
    unbuilt = [
        Built(job, tuple(Outcome(0, False, 0.0, missing) for _ in _parts(job))) for job, missing in lacking.items()
    ]
    return [job for job in jobs if job not in lacking], unbuilt


def build(jobs: Sequence[Job], settings: CompileSettings, processes: int | None = None) -> Iterator[Built]:
    """Compile what is not in the cache yet; each job is given back when all of it is done, in order.

    processes  None: one for each core that this process may use, if there is work for them
    errors     KernelUnavailable when the folder cannot keep code that a later process would trust; KernelTableError
               when a compiling process dies
    """
    fault = folder_fault(settings.home())
    if fault is not None:
        raise KernelUnavailable(f"compiled code cannot be kept: {fault}; name another folder")
    total = sum(len(job.instances) for job in jobs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = processes or min(cores, total // FEW)
    if processes < 2:
        yield from (Built(job, tuple(_one(job, part, settings) for part in _parts(job))) for job in jobs)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts)
    try:
        running = [[pool.submit(_one, job, part, settings) for part in _parts(job)] for job in jobs]
        for job, futures in zip(jobs, running, strict=True):
            yield Built(job, tuple(map(_result, futures)))
    finally:  # once, and waiting: a second shutdown takes the order to cancel back
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts() -> None:
    """A process that compiles ends when the one that started it says so, not at Ctrl-C."""
    signal(SIGINT, SIG_IGN)


def _parts(job: Job) -> tuple[Instance | None, ...]:
    return job.instances if job.chip is not None else (None,)


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except (OSError, RuntimeError) as error:
        raise KernelTableError(f"a process that compiles has ended: {error}; try again with --processes 1") from error


def _one(job: Job, instance: Instance | None, settings: CompileSettings) -> Outcome:
    """One binary; runs in a process of its own, too."""
    start = time.perf_counter()
    try:
        if instance is None or job.chip is None:
            made = compiled_cpp(job.file, settings, find_compiler())
        else:
            made = compiled(instance, job.chip, settings)
    except KernelUnavailable as error:
        return Outcome(0, False, time.perf_counter() - start, str(error))
    lost = "" if made.path is not None else f"compiled, but not kept in {settings.home()}: the log says why"
    return Outcome(len(made.content), made.fresh, time.perf_counter() - start, lost)
