"""Every own CUDA kernel over small shapes with tails, for compute-sanitizer: `make sanitize`, on a machine with a GPU.

Results are held against the float64 reference within the bound of the kernel's row, those of input quantizers byte for
byte against torch's. Exit 1 names what is wrong: a result, a kernel that fits the chip and refuses or launches nothing,
a function of csrc/cuda that was not launched. Kernels and sources for other chips are listed as such.
A process that pytest does not collect, since a sanitizer wraps a whole process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sanitize_cases import KERNELS, Case, Quantizing, cases, quantizings
from sanitize_launches import Launches, entries, entries_of, outputs_filled, rows_for, use_exact_memory

import kerneltable as kt
from kerneltable.kernels import registry
from kerneltable.model import Device, Problem, Table
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.settings import active
from kerneltable.ops.torch_dequantize import quantize_input
from kerneltable.run.checks.building import Job, build
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.run.place import chip_for
from kerneltable.run.trial import same_bytes
from kerneltable.select import refusals, with_packages

QUANTIZES = ("KT_HAS_MMA_FP8", 1)
"""What a chip has for which inputs are quantized by csrc/cuda."""

QUANTIZERS = "quantizers"
"""Who launches the input quantizers."""

COLUMNS_BETWEEN = 16
"""From the end of a row to the next one of inputs that are not contiguous."""


@dataclass
class Run:
    """One pass over everything.

    dry       nothing is compiled or launched, tensors lie in the processor's memory, no result is looked at
    only      users of launches that run: ids of kernels, QUANTIZERS; then nothing is looked for that is missing
    wrong     what is, in words
    """

    table: Table
    device: Device
    chip: CudaChip
    where: torch.device
    dry: bool
    only: tuple[str, ...] = ()
    launches: Launches = field(default_factory=Launches)
    wrong: list[str] = field(default_factory=list)

    def everything(self) -> None:
        """All cases on the kernels that the chip has, then all quantizers, then what is missing."""
        self.launches.watch(dry=self.dry)
        use_exact_memory(KERNELS, self.where, dry=self.dry)
        chips = rows_for(self.table, self.device)
        asked = self.only or (*KERNELS, QUANTIZERS)
        for case in cases(self.table, self.chip):
            self.run_case(case, [kernel for kernel in case.kernels if kernel in asked and not chips[kernel]])
        for one in quantizings(self.table) if QUANTIZERS in asked and QUANTIZES in self.chip.macros else ():
            self.guarded(str(one), lambda one=one: self.quantize(one))  # type: ignore[misc]
        if not self.only:
            self.say_what_is_missing(chips)

    # --- Products -----------------------------------------------------------------------------------------------------

    def run_case(self, case: Case, kernels: list[str]) -> None:
        """A layer on each kernel."""
        problem = case.problem
        if not kernels:
            return
        data = random_layer(problem.at(case.most_rows), torch.Generator().manual_seed(1))
        if case.wild:
            data.tensors["weight_scale"].view(-1)[:2] = torch.tensor([0.0, 2.0**-120])

        @cache
        def reference(m: int, quantized: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return reference64(problem, data.tensors, data.x[:m], data.bias, quantized)

        for kernel in kernels:
            for fault in map(str, refusals(self.table, kernel, self.device, problem)):
                self.wrong.append(f"{kernel} refuses {words(problem)}: {fault}")
                break
            else:
                what = f"{kernel}, {words(problem)}{', wild scales' if case.wild else ''}"
                self.guarded(what, lambda kernel=kernel: self.run_kernel(case, kernel, data, reference))  # type: ignore[misc]

    def run_kernel(self, case: Case, kernel: str, data: LayerData, reference: Callable[[int, bool], Any]) -> str:
        """Every call of a case on a kernel.

        returns   the largest error over its bound
        """
        problem, row = case.problem, self.table.kernels[kernel]
        tensors = {name: data.tensors[name].to(self.where) for name in row.parameters if name in data.tensors}
        bound = registry.load(kernel)(problem.at(case.rows[0]), **tensors, chip=self.chip)
        bias = None if data.bias is None else data.bias.to(self.where)
        self.launches.user = kernel
        worst = 0.0
        for m, how, call in self.calls(case, kernel, bound, data, bias):
            with outputs_filled((m, problem.n)):
                out = call()
            if self.dry:
                continue
            ref, magnitude = reference(m, quantizes_input(problem, row.kind))
            form = (problem.k, problem.output, row.numerics.accumulator)
            error = error_over_bound(out.cpu(), ref, magnitude, *form)
            worst = max(worst, error)
            if not error <= 1:
                self.wrong.append(f"{kernel}, {words(problem)}, m={m}, {how}: error {error:.3g} times its bound")
        return f"worst error over bound {worst:.3f}"

    def calls(
        self, case: Case, kernel: str, bound: Any, data: LayerData, bias: torch.Tensor | None
    ) -> Iterator[tuple[int, str, Callable[[], torch.Tensor]]]:
        """Rows, words and the call: as a layer calls, by stages, with gaps between rows, with forced instances."""
        for m in case.rows:
            x, gaps = data.x[:m].contiguous().to(self.where), self.with_gaps(data.x[:m])
            yield m, "contiguous", lambda x=x: bound(x, bias)  # type: ignore[misc]
            yield m, "with gaps between rows", lambda x=gaps: bound(x, bias)  # type: ignore[misc]
            yield m, "by stages", lambda x=x: bound.product(staged(bound, x), bias)  # type: ignore[misc]
        for one in case.forced:
            if one.kernel == kernel:
                x = data.x[: one.m].contiguous().to(self.where)
                how = " ".join(map(str, one.choice))
                yield one.m, how, lambda x=x, one=one: bound.product(staged(bound, x), bias, *one.choice)  # type: ignore[misc]

    def with_gaps(self, x: torch.Tensor) -> torch.Tensor:
        """x [m, k] with NaN between its rows."""
        m, k = x.shape
        wide = torch.full((m, k + COLUMNS_BETWEEN), torch.nan, dtype=x.dtype)
        wide[:, :k] = x
        return wide.to(self.where)[:, :k]

    # --- Quantizers ---------------------------------------------------------------------------------------------------

    def quantize(self, one: Quantizing) -> str:
        """Every call of a quantizer; its bytes must be torch's."""
        problem = one.problem
        scale = torch.tensor(8.0 / 448) if problem.input_scaling == "static" else None
        upper = torch.tensor(2.0 / 448) if one.capped else None
        limits = (None if number is None else number.to(self.where) for number in (scale, upper))
        quantizer = one.make(one.place(self.chip, self.where), *limits)
        self.launches.user = QUANTIZERS
        for m in one.rows:
            x = random_layer(problem.at(m), torch.Generator().manual_seed(m)).x.contiguous()
            wanted = quantize_input(problem, x, scale, upper)
            for how, given in (("contiguous", x.to(self.where)), ("with gaps between rows", self.with_gaps(x))):
                found = [part.cpu() for part in quantizer(given)]
                same = all(same_bytes(a, b[:m] if b.dim() else b) for a, b in zip(wanted, found, strict=True))
                if not (same or self.dry):
                    self.wrong.append(f"{one}, m={m}, {how}: other bytes than torch's")
        return "the same bytes"

    # --- Telling ------------------------------------------------------------------------------------------------------

    def guarded(self, what: str, run: Callable[[], str]) -> None:
        """Run and print a line; whatever is raised is noted as wrong, and the next one runs."""
        before, faults = self.launches.found.total(), len(self.wrong)
        try:
            answer = run()
        except Exception as error:  # also what a library raises: the rest is still worth running
            self.wrong.append(f"{what}: raised {type(error).__name__}: {error}")
        else:
            answer = "WRONG" if len(self.wrong) > faults else "" if self.dry else f", {answer}"
            print(f"{what}: {self.launches.found.total() - before} launches{answer}", flush=True)

    def say_what_is_missing(self, chips: dict[str, str]) -> None:
        """Rows and functions that are for this chip and launched nothing are wrong; the others are listed."""
        for kernel in KERNELS:
            if chips[kernel]:
                print(f"not for this device: {kernel}: {chips[kernel]}")
            elif not self.launches.total(kernel):
                self.wrong.append(f"{kernel} fits this device and launched nothing")
        owners = {row: entries_of(row, self.chip.multiprocessors) for row in chips}
        for one in sorted(entries() - self.launches.entries()):
            users = [row for row in owners if one in owners[row]]
            here = [row for row in users if not chips[row]]
            if here or not users:
                why = f"of {', '.join(here)}" if here else "of no row"
                self.wrong.append(f"csrc/{one.file}: {one.function} {why} was not launched")
            else:
                print(f"not for this device: csrc/{one.file}: {one.function}")


def staged(bound: Any, x: torch.Tensor) -> Any:
    """What a kernel's second stage takes; for one without a first stage, x."""
    return bound.quantize(x) if hasattr(bound, "quantize") else x


def words(problem: Problem) -> str:
    """A problem, in short."""
    return f"{problem.scheme} {problem.weight_granularity} {problem.n}x{problem.k} {problem.input} to {problem.output}"


def planned(architecture: str) -> Run:
    """A dry run for a chip of the table, with everything installed."""
    table = kt.load_table()
    row = table.platforms["cuda"].architectures[architecture]
    device = with_packages(kt.device(f"cuda:{architecture}", table), "all")
    return Run(table, device, cuda_chip(row, 132), torch.device("cpu"), dry=True)


def present() -> Run:
    """A run on torch's current GPU."""
    if not torch.cuda.is_available():
        sys.exit("sanitize.py: torch sees no CUDA device here; --dry-run sm90 says what would run on one")
    table, where = kt.load_table(), torch.device("cuda", torch.cuda.current_device())
    device = kt.current_device(table)
    chip = chip_for(table, device, where)
    if chip is None:
        sys.exit("sanitize.py: the table does not describe this chip")
    return Run(table, device, chip, where, dry=False)


def compile_all(run: Run) -> None:
    """Compile, on all cores, what a dry run asked for."""
    asked = sorted({one for _, one in run.launches.found}, key=lambda one: (one.file, one.defines))
    files = dict.fromkeys(one.file for one in asked)
    jobs = [Job(file, run.chip, (), tuple(one for one in asked if one.file == file)) for file in files]
    run.wrong += [error for built in build(jobs, active()) for error in built.errors]


def main() -> int:
    """0 when all that is for the chip ran and is right, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", metavar="ARCHITECTURE", help="launch nothing; say what would be, e.g. on sm90")
    parser.add_argument("--compile", action="store_true", help="launch nothing; compile what would be, on all cores")
    parser.add_argument(
        "--only", action="append", default=[], choices=(*KERNELS, QUANTIZERS), help="run this alone; repeatable"
    )
    asked, start = parser.parse_args(), time.perf_counter()
    run = planned(asked.dry_run) if asked.dry_run else present()
    if asked.compile:
        run.dry, run.where = True, torch.device("cpu")
    run.only = tuple(asked.only)
    run.everything()
    if asked.compile:
        compile_all(run)
    counts = f"{len(run.launches.entries())} functions, {len({one for _, one in run.launches.found})} instances"
    counts += f", {run.launches.found.total()} launches in {time.perf_counter() - start:.1f} s"
    print(f"{'would launch' if run.dry else 'launched'}: {counts}")
    for text in run.wrong:
        print(f"WRONG: {text}")
    return int(bool(run.wrong))


if __name__ == "__main__":
    sys.exit(main())
