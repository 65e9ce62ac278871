"""`kerneltable bench`: every kernel that this machine can run, side by side, timed and checked in the same run."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, table_of
from kerneltable.cli.output import print_json, print_lines
from kerneltable.errors import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kerneltable.cli.options import Subparsers
    from kerneltable.run.bench import Timing

TORCH_DEVICES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu"}
BANDS = ((1, 1), (2, 64), (65, 256), (257, 2**31))


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "bench", help="time every kernel that fits this machine, side by side", description=__doc__
    )
    parser.add_argument("scheme", metavar="SCHEME", help="a scheme of the table, e.g. fp8_block_w8a8")
    parser.add_argument(
        "--shapes", default="deepseek-v3", metavar="LIST",
        help="models (deepseek-v3, qwen3-32b, llama-3-70b, all) or NxK, separated by commas (default deepseek-v3)",
    )  # fmt: skip
    parser.add_argument(
        "--m", metavar="LIST", help="rows, separated by commas (default 1,8,16,...,8192; on a CPU to 256)"
    )
    parser.add_argument("--kernel", action="append", default=[], metavar="ID", help="this kernel alone; repeatable")
    parser.add_argument(
        "--against", metavar="ID", help="a peer: the plan's speed relative to it is summed up by bands of m"
    )
    parser.add_argument("--input", choices=("bf16", "f16", "f32"), help="input dtype (default bf16)", default="bf16")
    parser.add_argument(
        "--weight-granularity", metavar="NAME", help="tensor, channel or block (default: the scheme's first)"
    )
    parser.add_argument("--input-granularity", metavar="NAME", help="tensor, token, block or none")
    parser.add_argument("--plot", metavar="FILE", help="also draw time over m, one panel a shape (needs matplotlib)")
    add_layers(parser)
    add_format(parser, ("text", "json", "csv"))


def run(args: Namespace) -> int:
    """0 when every kernel that ran was within its bound, else 1."""
    report = measure(args)
    timings: list[Timing] = report["timings"]
    if args.format == "json":
        print_json(
            {**{k: v for k, v in report.items() if k != "timings"}, "timings": [as_json(t, report) for t in timings]}
        )
    elif args.format == "csv":
        print_lines(csv_lines(timings, report))
    else:
        print_lines(text_lines(timings, report, args.against))
    if args.plot:
        from kerneltable.cli.bench_plot import draw

        draw(timings, args.plot, str(report["device"]))
    return 0 if all(t.error_over_bound <= 1 for t in timings if t.call and not math.isnan(t.error_over_bound)) else 1


def measure(args: Namespace) -> dict[str, Any]:
    """Everything that one run found, with how and where it was measured."""
    import datetime

    import torch

    from kerneltable.model import Problem
    from kerneltable.run.bench import ROWS, Bench, bench_size, kernels_of
    from kerneltable.run.clock import memory_rate, product_rate
    from kerneltable.run.probe import current_device

    table = table_of(args)
    device = current_device(table)
    where = torch.device(TORCH_DEVICES.get(device.platform, "cpu"))
    if args.scheme not in table.schemes:
        raise ProblemError(f"there is no scheme '{args.scheme[:80]}'; the table has {', '.join(table.schemes)}")
    problem = Problem(
        args.scheme, n=1, k=1, input=args.input, output=args.input,
        weight_granularity=args.weight_granularity, input_granularity=args.input_granularity,
    )  # fmt: skip
    sizes = parse_shapes(args.shapes)
    rows = parse_rows(args.m) if args.m else ROWS if where.type == "cuda" else ROWS[:7]
    bench = Bench(table, device, problem, where)
    timings: list[Timing] = []
    for n, k in sizes:
        names = kernels_of(table, device, Problem(**{**vars_of(problem), "n": n, "k": k}), tuple(args.kernel))
        timings += bench_size(bench, n, k, rows, names, _show_progress)
    _show_progress("measuring the ceilings")
    report = {
        "format": 1, "scheme": args.scheme, "device": device.name or device.platform, "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "table": table.digest,
        "method": "CUDA graphs over rotating copies, median of replays" if where.type == "cuda" else "median of calls",
        "memory_bytes_per_s": memory_rate(where), "product_operations_per_s": product_rate(where), "timings": timings,
    }  # fmt: skip
    _show_progress("")
    return report


def vars_of(problem: Any) -> dict[str, Any]:
    """The fields of a Problem by name."""
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """ "deepseek-v3,8192x8192" as (n, k) pairs, each once.

    errors    ProblemError that names the part that is neither a model nor NxK
    """
    from kerneltable.run.bench import SHAPES

    found: list[tuple[int, int]] = []
    for part in text.split(","):
        if part == "all":
            found += [size for sizes in SHAPES.values() for size in sizes]
        elif part in SHAPES:
            found += SHAPES[part]
        else:
            n, _, k = part.lower().partition("x")
            if not (n.isdigit() and k.isdigit() and int(n) and int(k)):
                raise ProblemError(f"--shapes: '{part[:40]}' is neither NxK nor one of all, {', '.join(SHAPES)}")
            found.append((int(n), int(k)))
    return list(dict.fromkeys(found))


def parse_rows(text: str) -> tuple[int, ...]:
    """ "1,16,64" as numbers; ProblemError when one is not a number above 0."""
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise ProblemError(f"--m: wanted numbers above 0 separated by commas; found '{text[:40]}'")
    return tuple(int(part) for part in parts)


def as_json(timing: Timing, report: dict[str, Any]) -> dict[str, Any]:
    """One timing with its shares of the measured ceilings."""
    spreads = {
        stage: None if spread is None else {"median": spread.median, "p10": spread.low, "p90": spread.high}
        for stage, spread in (("call_us", timing.call), ("product_us", timing.product))
    }
    memory, product = shares(timing, report)
    error = timing.error_over_bound
    return {
        "kernel": timing.kernel, "n": timing.n, "k": timing.k, "m": timing.m, **spreads,
        "error_over_bound": None if math.isnan(error) else error, "chosen": timing.chosen,
        "memory_share": memory, "product_share": product, "fault": timing.fault,
    }  # fmt: skip


def shares(timing: Timing, report: dict[str, Any]) -> tuple[float | None, float | None]:
    """The parts of the measured memory and product rate that the product (or the call) reaches."""
    from kerneltable.model import Problem
    from kerneltable.run.bench import bytes_moved, operations

    spread = timing.product or timing.call
    if spread is None:
        return None, None
    seconds = spread.median * 1e-6
    moved = bytes_moved(timing, Problem(report["scheme"], n=timing.n, k=timing.k))
    return (
        moved / seconds / report["memory_bytes_per_s"],
        operations(timing) / seconds / report["product_operations_per_s"],
    )


def csv_lines(timings: Sequence[Timing], report: dict[str, Any]) -> list[str]:
    """A header and a line a timing."""
    rows = [as_json(t, report) for t in timings]
    head = "kernel,n,k,m,call_us,call_p10,call_p90,product_us,error_over_bound,chosen,memory_share,product_share"
    lines = [head]
    for row in rows:
        call, product = row["call_us"] or {}, row["product_us"] or {}
        values = [
            *(row[key] for key in ("kernel", "n", "k", "m")), *(call.get(key, "") for key in ("median", "p10", "p90")),
            product.get("median", ""),
            *(row[key] for key in ("error_over_bound", "chosen", "memory_share", "product_share")),
        ]  # fmt: skip
        lines.append(",".join("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return lines


def text_lines(timings: Sequence[Timing], report: dict[str, Any], against: str | None) -> list[str]:
    """A table for each size: a kernel a line, m across; what the table chooses carries a star."""
    lines = [
        f"{report['scheme']} on {report['device']}, torch {report['torch']}, {report['date']}; {report['method']}",
        f"ceilings measured in this run: memory {report['memory_bytes_per_s'] / 1e9:,.0f} GB/s, "
        f"unquantized product {report['product_operations_per_s'] / 1e9:,.0f} GFLOP/s",
    ]
    for n, k in dict.fromkeys((t.n, t.k) for t in timings):
        mine = [t for t in timings if (t.n, t.k) == (n, k)]
        rows = list(dict.fromkeys(t.m for t in mine))
        lines += ["", f"{n} x {k}, microseconds a call" + " " * 12 + "".join(f"{f'm={m}':>10}" for m in rows)]
        for name in dict.fromkeys(t.kernel for t in mine):
            of_kernel = {t.m: t for t in mine if t.kernel == name}
            lines.append(f"  {name:<34}" + "".join(f"{_cell(of_kernel[m], False):>10}" for m in rows))
            if any(t.product for t in of_kernel.values()):
                lines.append(f"  {'  product alone':<34}" + "".join(f"{_cell(of_kernel[m], True):>10}" for m in rows))
    checked = [t for t in timings if not math.isnan(t.error_over_bound)]
    if checked:
        worst = max(checked, key=lambda t: t.error_over_bound)
        lines += [
            "",
            f"worst error over bound {worst.error_over_bound:.3f} ({worst.kernel}, {worst.n} x {worst.k}, m={worst.m})",
        ]
    lines += [f"left out: {reason}" for reason in dict.fromkeys(f"{t.kernel}: {t.fault}" for t in timings if t.fault)]
    return lines + (_relative(timings, against) if against else [])


def _cell(timing: Timing, product: bool) -> str:
    spread = timing.product if product else timing.call
    if spread is None:
        return "-"
    star = "*" if timing.chosen and not product else ""
    return f"{spread.median:.1f}{star}" if spread.median < 10000 else f"{spread.median:.0f}{star}"


def _relative(timings: Sequence[Timing], against: str) -> list[str]:
    """How much faster the table's choices are than a peer, by bands of m; products where both have that stage."""
    from kerneltable.run.bench import geometric_mean

    peers = {(t.n, t.k, t.m): t for t in timings if t.kernel == against and t.call}
    plan = [t for t in timings if t.chosen and t.call and (t.n, t.k, t.m) in peers]
    if not plan:
        return ["", f"nothing to compare: {against} did not run at any size"]
    lines = ["", f"the table's choice against {against} (above 1: faster), products alone where both have them"]
    for low, high in BANDS:
        ratios = [_ratio(peers[t.n, t.k, t.m], t) for t in plan if low <= t.m <= high]
        if ratios:
            name = f"m {low} to {high}" if high < 2**31 else f"m from {low}"
            lines.append(
                f"  {name:<14} geometric mean {geometric_mean(ratios):.2f}, "
                f"least {min(ratios):.2f}, {len(ratios)} sizes"
            )
    return lines


def _ratio(peer: Timing, mine: Timing) -> float:
    assert peer.call is not None
    assert mine.call is not None
    if peer.product and mine.product:
        return peer.product.median / mine.product.median
    return (
        peer.call.median / (mine.product or mine.call).median
        if peer.kernel.startswith("matmul")
        else peer.call.median / mine.call.median
    )


def _show_progress(text: str) -> None:
    """One line on stderr that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
