"""What one run of `kerneltable bench` found, as JSON and as CSV."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.run.timing.bench import Timing


def granularity_of(problem: Problem) -> dict[str, str | None]:
    """What a report says of a completed problem's scales."""
    return {
        "weight_granularity": problem.weight_granularity,
        "weight_block": problem.weight_block and "{}x{}".format(*problem.weight_block),
        "input_granularity": problem.input_granularity,
        "input_scaling": problem.input_scaling,
    }


def heading(report: dict[str, Any]) -> str:
    """The scheme, and which of its scales were timed."""
    weight, given = report["weight_block"] or report["weight_granularity"], report["input_granularity"]
    static = ", static" if report["input_scaling"] == "static" else ""
    inputs = "input not quantized" if given == "none" else f"input per {given}{static}"
    return f"{report['scheme']} (scales: weight per {weight}, {inputs})"


def whole(report: dict[str, Any]) -> dict[str, Any]:
    """A report with its timings as JSON has them."""
    return {**report, "timings": [as_json(timing, report) for timing in report["timings"]]}


def as_json(timing: Timing, report: dict[str, Any]) -> dict[str, Any]:
    """One timing with its shares of the measured ceilings."""
    spreads = {
        stage: None if spread is None else {"median": spread.median, "p10": spread.low, "p90": spread.high}
        for stage, spread in (
            ("call_us", timing.call), ("product_us", timing.product), ("quantizer_us", timing.quantizer),
        )
    }  # fmt: skip
    memory, product = shares(timing, report)
    error = timing.error_over_bound
    return {
        "kernel": timing.kernel, "n": timing.n, "k": timing.k, "m": timing.m, **spreads,
        "error_over_bound": None if math.isnan(error) else error, "chosen": timing.chosen,
        "memory_share": memory, "product_share": product, "fault": timing.fault,
    }  # fmt: skip


def shares(timing: Timing, report: dict[str, Any]) -> tuple[float | None, float | None]:
    """The parts of the measured memory and product rate that the product (or the call) reaches; None before those are
    measured.

    A kernel that multiplies e4m3 with e4m3 is held against the product rate of that type, where one was measured.
    """
    from kerneltable.model import Problem
    from kerneltable.run.timing.bench import bytes_moved, operations

    spread = timing.product or timing.call
    if spread is None or "memory_bytes_per_s" not in report:
        return None, None
    seconds = spread.median * 1e-6
    kinds = {name: report[name] for name in ("input", "output") if name in report}
    moved = bytes_moved(timing, Problem(report["scheme"], n=timing.n, k=timing.k, **kinds))
    wide = report["product_operations_per_s"]
    ceiling = (report.get("fp8_product_operations_per_s") or wide) if timing.fp8 else wide
    return moved / seconds / report["memory_bytes_per_s"], operations(timing) / seconds / ceiling


def csv_lines(report: dict[str, Any]) -> list[str]:
    """A header and a line a timing."""
    rows = whole(report)["timings"]
    head = "kernel,n,k,m,call_us,call_p10,call_p90,product_us,quantizer_us,"
    head += "error_over_bound,chosen,memory_share,product_share,fault"
    lines = [head]
    for row in rows:
        call, product, quantizer = (row[stage] or {} for stage in ("call_us", "product_us", "quantizer_us"))
        values = [
            *(row[key] for key in ("kernel", "n", "k", "m")), *(call.get(key, "") for key in ("median", "p10", "p90")),
            product.get("median", ""), quantizer.get("median", ""),
            *(row[key] for key in ("error_over_bound", "chosen", "memory_share", "product_share")),
            str(row["fault"]).replace(",", ";").replace("\n", " "),
        ]  # fmt: skip
        lines.append(",".join("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return lines
