"""`kerneltable bench --host`: what an eager call of a layer costs the processor, beside nn.Linear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kerneltable.cli.bench_report import granularity_of, heading
from kerneltable.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kerneltable.run.timing.bench import Bench
    from kerneltable.run.timing.host_time import HostTime

NAME = 34
Sized = list[tuple[int, int, list[str]]]


def run(bench: Bench, sizes: Sized, rows: tuple[int, ...], format: str, seen: Callable[[str], None]) -> int:
    """0 when every kernel that takes a size was timed, else 1. Lines are printed as they come, JSON at the end.

    sizes   n, k and the kernels to time there
    """
    import torch

    from kerneltable.run.timing.host_time import host_times
    from kerneltable.select import complete

    timings: list[HostTime] = []

    def measured() -> Iterator[HostTime]:
        for n, k, names in sizes:
            for timing in host_times(bench, n, k, rows, names, seen):
                timings.append(timing)
                yield timing

    scheme = bench.table.schemes[bench.problem.scheme]
    head = {
        "scheme": scheme.name, **granularity_of(complete(scheme, bench.problem)), "input": bench.problem.input,
        "torch": torch.__version__, "device": bench.device.name or bench.device.platform,
    }  # fmt: skip
    if format == "json":
        found = list(measured())
        seen("")
        print_json({"format": 1, **head, "host": [as_json(one, found) for one in found]})
    else:
        for line in csv_lines(measured()) if format == "csv" else text_lines(measured(), rows, head):
            seen("")
            print(line, flush=True)
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


def csv_lines(timings: Iterable[HostTime]) -> Iterator[str]:
    """A header, and a line a timing as soon as that is there."""
    yield "kernel,n,k,m,host_us,host_p10,host_p90,of_linear,chosen,fault"
    seen: list[HostTime] = []
    for timing in timings:
        seen.append(timing)
        row = as_json(timing, seen)
        spread = row["host_us"] or {}
        values = [
            *(row[key] for key in ("kernel", "n", "k", "m")), *(spread.get(key) for key in ("median", "p10", "p90")),
            row["of_linear"], row["chosen"], str(row["fault"]).replace(",", ";").replace("\n", " "),
        ]  # fmt: skip
        yield ",".join("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def text_lines(timings: Iterable[HostTime], rows: tuple[int, ...], head: dict[str, Any]) -> Iterator[str]:
    """A table for each size: a kernel a line, as soon as its last m is timed; the table's choices carry a star.

    timings   by size, then by kernel, nn.Linear first; each kernel at all rows
    """
    from kerneltable.run.timing.host_time import ratio

    columns = tuple(dict.fromkeys(rows))
    yield f"{heading(head)} on {head['device']}, torch {head['torch']}; eager calls in inference mode"
    seen: list[HostTime] = []
    for timing in timings:
        if not seen or (seen[-1].n, seen[-1].k) != (timing.n, timing.k):
            yield ""
            title = f"{timing.n} x {timing.k}, host microseconds a call"
            yield f"{title:<{NAME + 2}}" + "".join(f"{f'm={m}':>16}" for m in columns)
        seen.append(timing)
        if timing.m == columns[-1]:
            cells = [_cell(one, ratio(one, seen)) for one in seen[-len(columns) :]]
            yield f"  {timing.kernel:<{NAME}}" + "".join(f"{cell:>16}" for cell in cells)
    yield ""
    yield "in brackets: relative to nn.Linear; * what the table chooses for this m"
    yield from dict.fromkeys(f"left out: {one.kernel}: {one.fault}" for one in seen if one.fault)


def _cell(timing: HostTime, relative: float) -> str:
    if timing.call is None:
        return "-"
    return f"{timing.call.median:.1f} ({relative:.2f}){'*' if timing.chosen else ''}"
