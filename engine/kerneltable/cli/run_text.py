"""What `kerneltable run` says: a line a layer, a summary, and why layers lack the first kernels of their routes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from kerneltable.model import Selection
    from kerneltable.run.checkpoints.generation import Generated
    from kerneltable.run.ledger import SetAside
    from kerneltable.run.timing.measure import Failed, Measured

WIDTH_OF_A_FILE = 160
FIRST = "each layer got the first kernel of its route"
AS_FORCED = "each layer got the forced kernel"


def print_text(measured: Sequence[Measured], failed: Sequence[Failed], aside: Sequence[SetAside]) -> None:
    """Print a table for each checkpoint, and the summary below.

    aside  the ledger's kernels that are not tried again
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False, soft_wrap=False)
    with console.capture() as text:  # rich ends the process with 1 where a reader has gone; print raises, as elsewhere
        _draw(console, measured)
        for line in summary(measured, failed, aside):
            console.print(Text(line), soft_wrap=True)
    print(text.get(), end="")


def _draw(console: Console, measured: Sequence[Measured]) -> None:
    """A table for each checkpoint."""
    from rich.table import Table as Grid
    from rich.text import Text

    for label in dict.fromkeys(layer.checkpoint for layer in measured):
        console.print(Text(label, style="bold"))
        grid = Grid(box=None, pad_edge=False)
        for name, side in (("layer", "left"), ("scheme", "left"), ("n x k", "right"), ("kernel", "left")):
            grid.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
        grid.add_column("error/bound", justify="right")
        grid.add_column("microseconds", justify="right")
        for layer in (layer for layer in measured if layer.checkpoint == label):
            size = f"{layer.n} x {layer.k}"
            error = Text(f"{layer.error_over_bound:.3f}", style="" if layer.within else "bold red")
            grid.add_row(Text(layer.name), layer.scheme, size, layer.kernel, error, f"{layer.microseconds:.1f}")
        console.print(grid)
        console.print()


def summary(measured: Sequence[Measured], failed: Sequence[Failed], aside: Sequence[SetAside]) -> list[str]:
    """All layers together: how many are right, by which kernels, what was refused, what failed."""
    within = sum(layer.within for layer in measured)
    worst = max((layer.error_over_bound for layer in measured), default=0.0)
    kernels = ", ".join(f"{kernel} {count}" for kernel, count in counts(measured).items()) or "none"
    device = measured[0].selection.device if measured else None
    where = "" if device is None else f" on {device.name or device.platform} ({device.platform} {device.architecture})"
    ran = f"{within} of {len(measured) + len(failed)} layers ran within their bound{where}"
    lines = [
        f"{ran}; worst error/bound {worst:.3f}" if measured else ran,
        f"kernels: {kernels}",
        memory_line(measured),
        *kept_lines(measured),
    ]
    lines += _refused(measured, failed, aside)
    return lines + [f"failed: {f.checkpoint} {f.name}: {f.reason}" for f in failed]


def _refused(measured: Sequence[Measured], failed: Sequence[Failed], aside: Sequence[SetAside]) -> list[str]:
    """What was refused, or that nothing was; no word where no layer says anything about it."""
    lines = refusal_lines(measured, failed, aside)
    if lines:
        return ["refused:", *(f"  {line}" for line in lines)]
    if failed or not measured:
        return []
    from kerneltable.run.choice import FORCED

    forced = all(FORCED in layer.selection.notes for layer in measured)
    first = all(layer.kernel == layer.selection.candidates[0].kernel for layer in measured)
    return ["refused: nothing" + (f"; {AS_FORCED if forced else FIRST}" if first else "")]


def refusal_lines(
    measured: Sequence[Measured], failed: Sequence[Failed] = (), aside: Iterable[SetAside] = ()
) -> list[str]:
    """What the table refused and what was set aside, and why: a line for each kernel and reason, with its layers."""
    lost = [failure.selection for failure in failed if failure.selection is not None]
    selections = [layer.selection for layer in measured] + lost
    return _table_lines(selections) + _aside_lines(selections, aside)


def _table_lines(selections: Iterable[Selection]) -> list[str]:
    """One line for each scheme, kernel and reason."""
    groups: dict[tuple[str, str, str, str, str], set[str]] = {}
    layers: Counter[tuple[str, str, str, str, str]] = Counter()
    for selection in selections:
        for candidate in selection.candidates:
            for refusal in candidate.refusals[:1]:
                scheme = selection.problem.scheme
                key = (scheme, candidate.kernel, refusal.predicate, refusal.wanted, str(refusal.where))
                groups.setdefault(key, set()).add(refusal.found)
                layers[key] += 1
    lines = []
    for key, found in groups.items():
        scheme, kernel, predicate, wanted, where = key
        values = ", ".join(sorted(found)[:4]) + (" ..." if len(found) > 4 else "")
        told = _layers_text(layers[key])
        lines.append(f"{scheme}: {kernel} refused {told}: {predicate} wanted {wanted}, found {values} ({where})")
    return lines


def _aside_lines(selections: Sequence[Selection], aside: Iterable[SetAside]) -> list[str]:
    """One line for each kernel and reason: what no row refuses, but could not be had or failed here."""
    layers: dict[tuple[str, str], set[int]] = {}
    for record in aside:
        for place, selection in enumerate(selections):
            if _concerns(record, selection):
                layers.setdefault((record.kernel, record.reason), set()).add(place)
    return [
        f"{kernel}: set aside: {reason} ({_layers_text(len(places))})" for (kernel, reason), places in layers.items()
    ]


def _concerns(record: SetAside, selection: Selection) -> bool:
    """Whether a kernel that was set aside is one that a layer would have taken."""
    wanted = any(one.kernel == record.kernel and not one.refusals for one in selection.candidates)
    layers = (None, selection.problem.at(None))
    return wanted and record.device == selection.device and record.shapes.problem in layers


def _layers_text(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def memory_line(measured: Sequence[Measured | Generated]) -> str:
    """What the layers keep in memory: the tensors of the checkpoint, and what their kernels packed beside them."""
    from kerneltable.select.terms import size_text

    given, packed = (sum(getattr(layer, name) for layer in measured) for name in ("weight_bytes", "packed_bytes"))
    return f"memory: weights and scales {size_text(given)} as in the checkpoint, {size_text(packed)} packed beside them"


def kept_lines(measured: Sequence[Measured]) -> list[str]:
    """Why layers hold the checkpoint's tensors although they were to be released, one line for each reason."""
    reasons = Counter(layer.kept for layer in measured if layer.kept)
    return [f"not released: {_layers_text(count)}: {why}" for why, count in reasons.items()]


def counts(measured: Iterable[Measured]) -> dict[str, int]:
    """Kernel ids -> layers that they computed."""
    return dict(Counter(layer.kernel for layer in measured))
