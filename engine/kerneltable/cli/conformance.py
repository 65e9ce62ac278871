"""`kerneltable conformance`: every kernel that fits this device, forced one by one, against float64."""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, check_kernels, count, named_file, seconds, size, table_of
from kerneltable.cli.output import print_json, replace_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kerneltable.cli.options import Subparsers
    from kerneltable.model import Device, Problem, Table
    from kerneltable.run.checks.conformance_cases import Case, Conformance

ELEMENTS_ON_CPU = 2**21
ELEMENTS_ON_GPU = 2**30
TORCH_DEVICES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu"}
FAULTS_SHOWN = 5
SECONDS = 240.0


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "conformance", help="run every kernel that fits this device against the reference", description=__doc__
    )
    add_layers(parser)
    parser.add_argument("--kernel", metavar="ID", action="append", help="this kernel alone; repeatable")
    parser.add_argument(
        "--shapes", type=size, default=40, metavar="COUNT", help="shapes a kernel; 0 for all (default 40)"
    )
    parser.add_argument(
        "--max-elements",
        type=count,
        metavar="COUNT",
        help=f"largest tensor (default {ELEMENTS_ON_GPU} on a GPU, {ELEMENTS_ON_CPU} on a CPU)",
    )
    parser.add_argument(
        "--large",
        choices=("yes", "no", "only"),
        default="yes",
        help="sizes beyond 2^31 elements too, or alone (default yes; a CPU runs none)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=SECONDS,
        metavar="S",
        help=f"begin no case of a kernel after so long (default {SECONDS:g}): some compile for every shape",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        type=named_file,
        help="also keep the JSON in a file, written anew after each kernel: a run that is ended early has it",
    )
    add_format(parser)


def run(args: Namespace) -> int:
    """0 when every kernel that fits is right everywhere and every row refuses what lies outside it, else 1.

    2 when no case was run of a kernel that was asked for by name, or none at all: nothing is known then.
    """
    from kerneltable.run.probe import current_device

    table = table_of(args)
    names = _names(args, table)
    device = current_device(table)
    place = f"{device.platform} {device.architecture or 'unknown'} {device.name}".strip()
    if args.format == "text":
        print(f"device: {place}", flush=True)
    found: list[Conformance] = []

    def answer() -> dict[str, Any]:
        kernels = [as_json(one) for one in found]
        return {"format": 1, "device": place, "complete": len(found) == len(names), "kernels": kernels}

    if args.out is not None:
        replace_json(args.out, answer())  # a place that cannot be written is said before anything runs
    for name in names:
        found.append(_measure_kernel(args, table, name, device))
        _show_progress("")
        if args.format == "text":  # at once: a run that is ended early has said what it found until then
            print("\n".join(as_text(found[-1])), flush=True)
        if args.out is not None:
            replace_json(args.out, answer())
    if args.format == "json":
        print_json(answer())
    idle = [one for one in found if not one.cases]
    for one in idle if args.kernel else idle[:1] if len(idle) == len(found) else ():
        print(f"kerneltable: conformance: {_why_idle(one)}", file=sys.stderr)
    if not all(one.sound for one in found):
        return 1
    return 2 if len(idle) == len(found) or (args.kernel and idle) else 0


def _why_idle(one: Conformance) -> str:
    """Why no case of a kernel was run, and the next step."""
    why = one.refused or tuple(one.skipped) or ("no shape fits",)
    step = "leave it out, or run it on a machine that it fits" if one.refused else "allow more shapes, elements or time"
    return f"'{one.kernel}': a case was wanted; none was run: {'; '.join(why)}; {step}"


def as_json(one: Conformance) -> dict[str, Any]:
    """A kernel's findings as JSON; an infinite error is null."""
    return {
        "kernel": one.kernel,
        "runs_here": not one.refused,
        "refused": list(one.refused),
        "sound": one.sound,
        "cases": [_case_as_json(case) for case in one.cases],
        "worst_error_over_bound": _finite(one.worst),
        "skipped": dict(one.skipped),
        "outside": {"asked": one.outside[0], "refused": one.outside[1], "admitted": list(one.admitted)},
    }


def _case_as_json(case: Case) -> dict[str, Any]:
    """One shape; `large` says that a tensor of it has more than 2^31 elements."""
    return {
        "problem": problem_text(case.problem),
        "error_over_bound": _finite(case.error_over_bound),
        "large": case.large,
        "faults": list(case.faults),
    }


def as_text(one: Conformance) -> list[str]:
    """A kernel's findings in one line, the worst shape, and what is wrong or was left out."""
    if one.refused:
        return [f"{one.kernel:<28} does not run here: {'; '.join(one.refused)}"]
    verdict = ("ok  " if one.cases else "none") if one.sound else "FAIL"
    asked, refused = one.outside
    large = sum(case.large for case in one.cases)
    beyond = f" ({large} beyond 2^31 elements)" if large else ""
    lines = [
        f"{one.kernel:<28} {verdict} {len(one.cases):>3} cases{beyond}, worst error over bound {one.worst:.3f}, "
        f"{refused} of {asked} problems outside the row refused"
    ]
    if one.cases:
        lines.append(f"    worst: {problem_text(max(one.cases, key=lambda case: case.error_over_bound).problem)}")
    lines += [f"    skipped {count}: {reason}" for reason, count in one.skipped.items()]
    lines += [f"    admitted although outside: {problem}" for problem in one.admitted]
    faulty = [case for case in one.cases if case.faults]
    lines += [f"    {problem_text(case.problem)}: {'; '.join(case.faults)}" for case in faulty[:FAULTS_SHOWN]]
    if len(faulty) > FAULTS_SHOWN:
        lines.append(f"    and {len(faulty) - FAULTS_SHOWN} faulty cases more (--format json lists all)")
    return lines


def problem_text(problem: Problem) -> str:
    """A problem in one line."""
    block = "" if problem.weight_block is None else " {}x{}".format(*problem.weight_block)
    return (
        f"{problem.scheme} m={problem.m} n={problem.n} k={problem.k} {problem.input}->{problem.output}"
        f"{' bias' if problem.bias else ''}, weight {problem.weight_granularity}{block} {problem.weight_scale}, "
        f"input {problem.input_granularity} {problem.input_scaling}"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _names(args: Namespace, table: Table) -> list[str]:
    """The kernels that were asked for, else all; ProblemError for one that the table does not have."""
    check_kernels(args.kernel or (), table)
    return list(args.kernel or table.kernels)


def _measure_kernel(args: Namespace, table: Table, name: str, device: Device) -> Conformance:
    """Run the cases of one kernel until its time is over; what was not begun by then is counted."""
    from kerneltable.run.checks.conformance import run_case
    from kerneltable.run.checks.conformance_cases import plan_cases

    kernel, where = table.kernels[name], TORCH_DEVICES.get(device.platform, "cpu")
    largest = args.max_elements or (ELEMENTS_ON_CPU if where == "cpu" else ELEMENTS_ON_GPU)
    problems, one = plan_cases(table, kernel, device, shapes=args.shapes, max_elements=largest)
    runs: list[Callable[[], Case]] = [
        partial(run_case, table, kernel, problem, where, i) for i, problem in enumerate(problems)
    ]
    if args.large == "only":
        runs.clear()
        one.skipped.clear()
    runs += _large(args, table, name, device, one)
    end = time.monotonic() + args.seconds
    for index, run in enumerate(runs):
        if time.monotonic() > end:
            one.skipped[f"not begun within {args.seconds:g} s"] += len(runs) - index
            break
        _show_progress(f"{name} {index + 1}/{len(runs)}")
        one.cases.append(run())
    return one


def _large(args: Namespace, table: Table, name: str, device: Device, one: Conformance) -> Iterator[Callable[[], Case]]:
    """The cases beyond 2^31 elements that were asked for and have room; the others are counted with the reason."""
    from kerneltable.run.checks.conformance_cases import plan_large

    where = TORCH_DEVICES.get(device.platform, "cpu")
    if args.large == "no" or one.refused:
        return
    import torch

    from kerneltable.run.checks import conformance_large as large

    kernel = table.kernels[name]
    for index, problem in enumerate(plan_large(table, kernel, device, one, large.SHAPES)):
        free = 0 if where == "cpu" else large.free_memory(torch.device(where))
        lack = "beyond 2^31 elements: a CPU runs none" if where == "cpu" else large.lack_of_memory(problem, free)
        if lack is None:
            yield partial(large.run_large, table, kernel, problem, where, index)
        else:
            one.skipped[lack] += 1


def _show_progress(text: str) -> None:
    """One line on stderr that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
