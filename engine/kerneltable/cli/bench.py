"""`kerneltable bench`: every kernel that this machine can run, side by side, timed and checked in the same run."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from kerneltable.cli.bench_report import csv_lines, granularity_of, shares, whole
from kerneltable.cli.bench_text import text_lines
from kerneltable.cli.options import add_format, add_layers, check_kernels, named_file, table_of
from kerneltable.cli.output import print_json, print_lines, replace_json
from kerneltable.errors import ProblemError

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers
    from kerneltable.run.timing.bench import Bench, Timing

MODEL_SHAPES = "deepseek-v3"
HOST_ROWS, HOST_SHAPES = (1, 64), "1024x1024"
"""What a call costs the processor does not depend on the size of the weight: a small one, done at once."""

OTHERS = "others"
"""In the place of a peer: the fastest kernel that the table does not choose, cell by cell."""

TORCH_DEVICES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu"}


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "bench", help="time every kernel that fits this machine, side by side", description=__doc__
    )
    parser.add_argument("scheme", metavar="SCHEME", help="a scheme of the table, e.g. fp8_block_w8a8")
    parser.add_argument(
        "--shapes", metavar="LIST",
        help="models (deepseek-v3, qwen3-32b, llama-3-70b, all) or NxK, separated by commas "
        f"(default {MODEL_SHAPES}; with --host {HOST_SHAPES})",
    )  # fmt: skip
    parser.add_argument(
        "--m", metavar="LIST", help="rows, separated by commas (default 1,8,16,...,8192; on a CPU to 256)"
    )
    parser.add_argument("--kernel", action="append", default=[], metavar="ID", help="this kernel alone; repeatable")
    parser.add_argument(
        "--against", metavar="ID", action="append", default=[],
        help="a peer, or 'others' for the fastest other kernel of each cell: the speed of the plan relative to it is "
        "summed up by bands of m; repeatable",
    )  # fmt: skip
    parser.add_argument("--input", choices=("bf16", "f16", "f32"), help="input dtype (default bf16)", default="bf16")
    parser.add_argument(
        "--weight-granularity", metavar="NAME", help="tensor, channel or block (default: the scheme's first)"
    )
    parser.add_argument("--input-granularity", metavar="NAME", help="tensor, token, block or none")
    parser.add_argument(
        "--host", action="store_true",
        help="instead: microseconds until an eager call of a whole layer returns, beside nn.Linear",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=named_file,
        help="also keep the JSON in a file, written anew after each size: a run that is ended early has it",
    )  # fmt: skip
    parser.add_argument(
        "--plot", metavar="FILE", type=named_file, help="also draw time over m, one panel a shape (needs matplotlib)"
    )
    add_layers(parser)
    add_format(parser, ("text", "json", "csv"))


def run(args: Namespace) -> int:
    """0 when every kernel that ran was within its bound, else 1."""
    if args.host:
        return host(args)
    if args.plot:
        from kerneltable.cli.bench_plot import check_plot

        check_plot(args.plot)
    report = measure(args)
    timings: list[Timing] = report["timings"]
    if args.format == "json":
        print_json(whole(report))
    elif args.format == "csv":
        print_lines(csv_lines(report))
    else:
        print_lines(text_lines(timings, report, args.against, lambda timing: shares(timing, report)))
    if args.plot:
        from kerneltable.cli.bench_plot import draw

        draw(timings, args.plot, str(report["device"]))
    return 0 if all(t.error_over_bound <= 1 for t in timings if t.call and not math.isnan(t.error_over_bound)) else 1


def measure(args: Namespace) -> dict[str, Any]:
    """Everything that one run found, with how and where it was measured."""
    import datetime

    import torch

    from kerneltable.model import Problem
    from kerneltable.run.timing.bench import ROWS, bench_size, kernels_of, left_out
    from kerneltable.run.timing.clock import fp8_product_rate, memory_rate, product_rate
    from kerneltable.run.timing.room import check_room
    from kerneltable.select import complete

    bench = bench_of(args)
    table, device, problem, where = bench.table, bench.device, bench.problem, bench.where
    sizes = parse_shapes(args.shapes or MODEL_SHAPES)
    rows = parse_rows(args.m) if args.m else ROWS if where.type == "cuda" else ROWS[:7]
    check_room(sizes, max(rows), where)
    _check_peers(args, bench)
    timings: list[Timing] = []
    others: dict[str, str] = {}
    report: dict[str, Any] = {
        "format": 1, "scheme": args.scheme, **granularity_of(complete(table.schemes[args.scheme], problem)),
        "input": args.input, "output": args.input,
        "device": device.name or device.platform, "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "table": table.digest,
        "method": "CUDA graphs over rotating copies, median of replays" if where.type == "cuda"
        else "median of calls over rotating copies",
        "complete": False, "left_out": others, "timings": timings,
    }  # fmt: skip
    _keep(args, report)  # a place that cannot be written is said before anything runs
    for place, (n, k) in enumerate(sizes):
        sized = Problem(**{**vars_of(problem), "n": n, "k": k})
        names = kernels_of(table, device, sized, tuple(args.kernel))
        others |= {} if args.kernel else left_out(table, device, sized, names)
        at = f"size {place + 1} of {len(sizes)}: "
        timings += bench_size(bench, n, k, rows, names, lambda text, at=at: _show_progress(at + text))  # type: ignore[misc]
        _keep(args, report)
    _show_progress("measuring the ceilings")
    report |= {
        "complete": True, "memory_bytes_per_s": memory_rate(where), "product_operations_per_s": product_rate(where),
        "fp8_product_operations_per_s": fp8_product_rate(where),
    }  # fmt: skip
    _keep(args, report)
    _show_progress("")
    return report


def _keep(args: Namespace, report: dict[str, Any]) -> None:
    """What was found until now, in the file that was asked for."""
    if args.out is not None:
        replace_json(args.out, whole(report))


def bench_of(args: Namespace) -> Bench:
    """What all sizes share: the table, this machine, the scheme's problem.

    errors    ProblemError for a scheme or a kernel that the table does not have
    """
    import torch

    from kerneltable.model import Problem
    from kerneltable.run.probe import current_device
    from kerneltable.run.timing.bench import PEER, Bench

    table = table_of(args)
    if args.scheme not in table.schemes:
        raise ProblemError(f"there is no scheme '{args.scheme[:80]}'; the table has {', '.join(table.schemes)}")
    check_kernels(args.kernel, table)
    check_kernels(args.against, table, (PEER, OTHERS))
    device = current_device(table)
    problem = Problem(
        args.scheme, n=1, k=1, input=args.input, output=args.input,
        weight_granularity=args.weight_granularity, input_granularity=args.input_granularity,
    )  # fmt: skip
    return Bench(table, device, problem, torch.device(TORCH_DEVICES.get(device.platform, "cpu")))


def _check_peers(args: Namespace, bench: Bench) -> None:
    """ProblemError for a kernel of --against that is not timed here, before the others are."""
    from kerneltable.run.timing.bench import PEER, kernels_of, left_out

    timed = kernels_of(bench.table, bench.device, bench.problem, tuple(args.kernel))
    others = left_out(bench.table, bench.device, bench.problem, timed)
    for peer in args.against:
        if peer not in (*timed, PEER, OTHERS):
            why = others.get(peer, f"it is in no route of {args.scheme} on {bench.device.platform}")
            why = "--kernel leaves it out; name it there too" if args.kernel else why
            raise ProblemError(f"--against {peer}: it is not timed here: {why}")


def host(args: Namespace) -> int:
    """Host times of eager calls, see cli/bench_host.py.

    errors    ProblemError for options that say nothing about host times
    """
    from kerneltable.cli import bench_host
    from kerneltable.model import Problem
    from kerneltable.run.timing.bench import kernels_of
    from kerneltable.run.timing.room import check_room

    for option, given in (("--against", args.against), ("--plot", args.plot), ("--out", args.out)):
        if given:
            raise ProblemError(f"bench {option}: --host has no use for it; leave one of them out")
    bench = bench_of(args)
    shapes = parse_shapes(args.shapes or HOST_SHAPES)
    rows = parse_rows(args.m) if args.m else HOST_ROWS
    check_room(shapes, max(rows), bench.where)
    sizes = [
        (n, k, kernels_of(bench.table, bench.device, Problem(**{**vars_of(bench.problem), "n": n, "k": k}),
                          tuple(args.kernel)))
        for n, k in shapes
    ]  # fmt: skip
    return bench_host.run(bench, sizes, rows, args.format, _show_progress)


def vars_of(problem: Any) -> dict[str, Any]:
    """The fields of a Problem by name."""
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """ "deepseek-v3,8192x8192" as (n, k) pairs, each once.

    errors    ProblemError that names the part that is neither a model nor NxK
    """
    from kerneltable.run.timing.bench import SHAPES

    found: list[tuple[int, int]] = []
    for part in text.split(","):
        if part == "all":
            found += [size for sizes in SHAPES.values() for size in sizes]
        elif part in SHAPES:
            found += SHAPES[part]
        else:
            n, _, k = map(_number, part.lower().partition("x"))
            if not (n and k):
                known = ", ".join(SHAPES)
                raise ProblemError(f"--shapes: '{part[:40]}' is neither NxK (below 2^31 each) nor one of all, {known}")
            found.append((n, k))
    return list(dict.fromkeys(found))


def parse_rows(text: str) -> tuple[int, ...]:
    """ "1,16,64" as numbers; ProblemError when one is not a number from 1 to 2^31 - 1."""
    rows = tuple(map(_number, text.split(",")))
    if not all(rows):
        raise ProblemError(f"--m: wanted numbers from 1 to {2**31 - 1} separated by commas; found '{text[:40]}'")
    return rows


def _number(text: str) -> int:
    """A size in decimal digits; 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**31 else 0


def _show_progress(text: str) -> None:
    """One line on stderr that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
