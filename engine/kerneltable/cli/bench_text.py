"""What `kerneltable bench` prints: a table a size, shares of the ceilings, speeds relative to peers by bands of m."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kerneltable.cli.bench_report import heading

if TYPE_CHECKING:
    from kerneltable.run.timing.bench import Timing

BANDS = ((1, 1), (2, 64), (1, 64), (65, 256), (257, 2**31), (1, 2**31))
"""Of the summaries: first and last m."""

NAME = 34
Shares = Callable[["Timing"], tuple[float | None, float | None]]


def text_lines(
    timings: Sequence[Timing], report: dict[str, Any], against: Sequence[str] = (), shares: Shares | None = None
) -> list[str]:
    """A table for each size: a kernel a line, m across; what the table chooses carries a star.

    against  peers: the speed of the table's choice relative to each is summed up
    shares   the parts of the memory and product rate that a timing reaches; None: left out
    """
    lines = list(_head(report))
    for n, k in dict.fromkeys((t.n, t.k) for t in timings):
        lines += ["", *_of_size([t for t in timings if (t.n, t.k) == (n, k)], shares)]
    checked = [t for t in timings if not math.isnan(t.error_over_bound)]
    lines.append("")
    if any(t.chosen for t in timings):
        lines.append("* what the table chooses for this m")
    if shares is not None:
        lines.append("of the ceiling: share of the memory rate (m) or of the product rate (p), whichever is higher")
    if checked:
        worst = max(checked, key=lambda t: t.error_over_bound)
        where = f"{worst.kernel}, {worst.n} x {worst.k}, m={worst.m}"
        lines.append(f"worst error over bound {worst.error_over_bound:.3f} ({where})")
    faults = dict.fromkeys(f"{t.kernel}: {t.fault}" for t in timings if t.fault)
    lines += [f"left out: {reason}" for reason in faults]
    lines += [f"left out: {kernel}: {reason}" for kernel, reason in report.get("left_out", {}).items()]
    return lines + [line for peer in against for line in relative_lines(timings, peer)]


def _head(report: dict[str, Any]) -> Iterator[str]:
    yield f"{heading(report)} on {report['device']}, torch {report['torch']}, {report['date']}; {report['method']}"
    fp8 = report.get("fp8_product_operations_per_s")
    yield (
        f"ceilings measured in this run: memory {report['memory_bytes_per_s'] / 1e9:,.0f} GB/s, "
        f"unquantized product {report['product_operations_per_s'] / 1e9:,.0f} GFLOP/s"
        + (f", e4m3 product {fp8 / 1e9:,.0f} GFLOP/s" if fp8 else "")
    )


def _of_size(mine: Sequence[Timing], shares: Shares | None) -> Iterator[str]:
    rows = list(dict.fromkeys(t.m for t in mine))
    head = f"{mine[0].n} x {mine[0].k}, microseconds a call"
    yield f"{head:<{NAME + 2}}" + "".join(f"{f'm={m}':>10}" for m in rows)
    for name in dict.fromkeys(t.kernel for t in mine):
        found = {t.m: t for t in mine if t.kernel == name}
        cells: list[tuple[str, Callable[[Timing], str]]] = [(name, lambda t: _cell(t.call, t.chosen))]
        if any(t.product for t in found.values()):
            cells.append(("  product alone", lambda t: _cell(t.product)))
        if any(t.quantizer for t in found.values()):
            cells.append(("  quantizer alone", lambda t: _cell(t.quantizer)))
        if shares is not None:
            cells.append(("  of the ceiling", lambda t: _share(*shares(t))))
        for title, cell in cells:
            yield f"  {title:<{NAME}}" + "".join(f"{cell(found[m]) if m in found else '-':>10}" for m in rows)


def _cell(spread: Any, chosen: bool = False) -> str:
    if spread is None:
        return "-"
    star = "*" if chosen else ""
    return f"{spread.median:.1f}{star}" if spread.median < 10000 else f"{spread.median:.0f}{star}"


def _share(memory: float | None, product: float | None) -> str:
    if memory is None or product is None:
        return "-"
    return f"{100 * memory:.0f}% m" if memory >= product else f"{100 * product:.0f}% p"


def relative_lines(timings: Sequence[Timing], against: str) -> list[str]:
    """How much faster the table's choices are than a peer, by bands of m; products where both have that stage.

    against  a kernel, or "others": of each cell, the fastest of the kernels that the table does not choose
    """
    from kerneltable.run.timing.bench import geometric_mean

    peers = (
        _fastest_others(timings) if against == "others" else {_cell_of(t): t for t in timings if t.kernel == against}
    )
    plan = [t for t in timings if t.chosen and t.call and _cell_of(t) in peers and peers[_cell_of(t)].call]
    if not plan:
        return ["", f"nothing to compare: {against} did not run at any size"]
    peer = "the fastest other kernel of each cell" if against == "others" else against
    lines = ["", f"the table's choice against {peer} (above 1: faster), products alone where both have them"]
    told: list[list[Timing]] = []
    for low, high in BANDS:
        inside = [t for t in plan if low <= t.m <= high]
        if not inside or inside in told:
            continue
        told.append(inside)
        speeds = {t: _ratio(peers[_cell_of(t)], t) for t in inside}
        rows = f"m {low} to {high}" if high < 2**31 else f"m from {low}"
        rows = f"m {low}" if low == high else rows
        least, most = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
        lines.append(
            f"  {rows:<14} geometric mean {geometric_mean(list(speeds.values())):.2f}, "
            f"least {_told(least, speeds)}, most {_told(most, speeds)}, {len(speeds)} sizes"
        )
    return lines


def _cell_of(timing: Timing) -> tuple[int, int, int]:
    return timing.n, timing.k, timing.m


def _fastest_others(timings: Sequence[Timing]) -> dict[tuple[int, int, int], Timing]:
    found: dict[tuple[int, int, int], Timing] = {}
    for timing in timings:
        spread = timing.product or timing.call
        if spread is None or timing.chosen or timing.kernel.startswith("matmul"):
            continue
        best = found.get(_cell_of(timing))
        best_spread = None if best is None else best.product or best.call
        if best_spread is None or spread.median < best_spread.median:
            found[_cell_of(timing)] = timing
    return found


def _told(timing: Timing, speeds: dict[Timing, float]) -> str:
    return f"{speeds[timing]:.2f} ({timing.n} x {timing.k}, m={timing.m})"


def _ratio(peer: Timing, mine: Timing) -> float:
    """How many times the peer's time is; against an unquantized product, which has one stage, ours is the product."""
    assert peer.call is not None
    assert mine.call is not None
    if peer.product and mine.product:
        return peer.product.median / mine.product.median
    unquantized = peer.kernel.startswith("matmul")
    return peer.call.median / (mine.product or mine.call if unquantized else mine.call).median
