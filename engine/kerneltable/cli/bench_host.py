"""`kerneltable bench --host`: what an eager call of a layer costs the processor, beside nn.Linear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kerneltable.cli.output import print_json, print_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from kerneltable.run.timing.bench import Bench
    from kerneltable.run.timing.host_time import HostTime

NAME = 34
Sized = list[tuple[int, int, list[str]]]


def run(bench: Bench, sizes: Sized, rows: tuple[int, ...], format: str, seen: Callable[[str], None]) -> int:
    """0 when every kernel that takes a size was timed, else 1.

    sizes   n, k and the kernels to time there
    """
    import torch

    from kerneltable.run.timing.host_time import host_times

    timings = [timing for n, k, names in sizes for timing in host_times(bench, n, k, rows, names, seen)]
    seen("")
    head = {"scheme": bench.problem.scheme, "input": bench.problem.input, "torch": torch.__version__}
    head["device"] = bench.device.name or bench.device.platform
    if format == "json":
        print_json({"format": 1, **head, "host": [as_json(one, timings) for one in timings]})
    elif format == "csv":
        print_lines(csv_lines(timings))
    else:
        print_lines(text_lines(timings, head))
    return int(any(one.broken for one in timings))


def as_json(timing: HostTime, timings: list[HostTime]) -> dict[str, Any]:
    """One timing, and its ratio to nn.Linear."""
    from kerneltable.run.timing.host_time import ratio

    call, relative = timing.call, ratio(timing, timings)
    spread = None if call is None else {"median": call.median, "p10": call.low, "p90": call.high}
    return {
        "kernel": timing.kernel, "n": timing.n, "k": timing.k, "m": timing.m, "host_us": spread,
        "of_linear": None if math.isnan(relative) else relative, "chosen": timing.chosen, "fault": timing.fault,
    }  # fmt: skip


def csv_lines(timings: list[HostTime]) -> list[str]:
    """A header and a line a timing."""
    lines = ["kernel,n,k,m,host_us,host_p10,host_p90,of_linear,chosen,fault"]
    for row in (as_json(timing, timings) for timing in timings):
        spread = row["host_us"] or {}
        values = [
            *(row[key] for key in ("kernel", "n", "k", "m")), *(spread.get(key) for key in ("median", "p10", "p90")),
            row["of_linear"], row["chosen"], str(row["fault"]).replace(",", ";").replace("\n", " "),
        ]  # fmt: skip
        lines.append(",".join("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return lines


def text_lines(timings: list[HostTime], head: dict[str, Any]) -> list[str]:
    """A table for each size: a kernel a line, m across; what the table chooses carries a star."""
    from kerneltable.run.timing.host_time import ratio

    lines = [f"{head['scheme']} on {head['device']}, torch {head['torch']}; eager calls in inference mode"]
    for n, k in dict.fromkeys((t.n, t.k) for t in timings):
        mine = [t for t in timings if (t.n, t.k) == (n, k)]
        rows = list(dict.fromkeys(t.m for t in mine))
        title = f"{n} x {k}, host microseconds a call"
        lines += ["", f"{title:<{NAME + 2}}" + "".join(f"{f'm={m}':>16}" for m in rows)]
        for name in dict.fromkeys(t.kernel for t in mine):
            cells = [_cell(t, ratio(t, mine)) for t in mine if t.kernel == name]
            lines.append(f"  {name:<{NAME}}" + "".join(f"{cell:>16}" for cell in cells))
    lines += ["", "in brackets: relative to nn.Linear; * what the table chooses for this m"]
    faults = dict.fromkeys(f"{t.kernel}: {t.fault}" for t in timings if t.fault)
    return lines + [f"left out: {reason}" for reason in faults]


def _cell(timing: HostTime, relative: float) -> str:
    if timing.call is None:
        return "-"
    return f"{timing.call.median:.1f} ({relative:.2f}){'*' if timing.chosen else ''}"
