"""What the plans of a route keep to: what every kernel must promise, and which steps may pack the weights of a layer.

Kernels of one layout share a copy of the weights, and copies are counted. The tensors of the checkpoint stay with a
layer, so kernels of layout `checkpoint` cost nothing. The steps are gone through in their order: one that would win
some m of the layer has a copy in its layout as long as `weight_copies` allows one more; a later one that would win some
m in another layout is refused, for every m of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kerneltable.formats import FORMATS
from kerneltable.model import CHECKPOINT, Demand, Kernel, Problem, Refusal, Route, Step, Table
from kerneltable.model.predicates import Predicate
from kerneltable.select.atoms import cells_of

Rows = int | None
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Bytes:
    """What the weights of a layer take in memory, codes and scales, in bytes."""

    codes: int
    scales: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.codes + self.scales

    def __str__(self) -> str:
        return size_text(self.total)


def size_text(size: int) -> str:
    """Bytes for a reader: "28.0 MiB", below one MiB "25.0 KiB"."""
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size / 1024:.1f} KiB"


def bytes_of(problem: Problem) -> Bytes:
    """Codes and scales of a completed problem as the checkpoint has them; a packed copy takes about as much.

    e4m3 codes take a byte. What a layout pads, or rounds its scales to, is not counted.
    """
    n, k = problem.n, problem.k
    rows, columns = problem.weight_block or (max(n, 1), max(k, 1))
    counts = {"tensor": 1, "channel": n, "block": -(-n // rows) * -(-k // columns)}
    scale = FORMATS[problem.weight_scale].bits // 8 if problem.weight_scale in FORMATS else 0
    return Bytes(n * k, counts.get(problem.weight_granularity or "", 0) * scale)


def demand_refusals(kernel: Kernel, route: Route | None, facts: Mapping[str, Any] | None = None) -> tuple[Refusal, ...]:
    """What a deployment demands of every kernel of a route, and this row does not promise or cannot keep.

    facts   of the problem; None: only the row is looked at
    """
    demands = () if route is None else route.terms.demands
    return tuple(refusal for demand in demands for refusal in _unmet(kernel, demand, facts))


def _unmet(kernel: Kernel, demand: Demand, facts: Mapping[str, Any] | None) -> Iterator[Refusal]:
    key, promises = f"plans.{demand.name}", kernel.numerics
    if not getattr(promises, demand.name):
        yield Refusal(kernel.id, key, "true", f"false ({promises.mark})", demand.mark)
    if demand.name == "batch_invariant" and facts is not None and shares_scale(facts):
        wanted = "an input whose scales do not depend on other rows"
        yield Refusal(kernel.id, key, wanted, "one dynamic scale for the tensor", demand.mark)


def shares_scale(facts: Mapping[str, Any]) -> bool:
    """Whether all rows of an input have one scale that is computed from all of them, whatever the kernel."""
    return bool(facts["input_granularity"] == "tensor" and facts["input_scaling"] == "dynamic")


def packed_layouts(table: Table, steps: Iterable[Step]) -> list[str]:
    """The layouts of these steps that are a copy of the weights, each once, in order."""
    layouts = dict.fromkeys(table.kernels[step.kernel].layout for step in steps)
    return [layout for layout in layouts if layout != CHECKPOINT]


def row_predicates(table: Table, route: Route) -> Iterator[Predicate]:
    """Every limit on m that a row, a step or a denial of a route has."""
    kernels = {step.kernel for step in route.steps}
    kernels |= {choice.kernel for choice in (route.require, route.prefer) if choice is not None}
    groups = [step.when for step in route.steps]
    groups += [table.kernels[kernel].accepts for kernel in kernels]
    groups += [denial.predicates for denial in table.denials if denial.kernel in kernels]
    return (predicate for group in groups for predicate in group if predicate.key.split(".")[1] == "m")


def every_m(table: Table, route: Route) -> tuple[Rows, ...]:
    """One m of each kind that the route can tell apart: the unknown one (None), and numbers from 1 on."""
    cells = cells_of(tuple(row_predicates(table, route)))
    return (None, *(cell.smallest for cell in cells if cell.smallest > 0))


def over_budget(
    table: Table, route: Route, steps: Sequence[Step], problem: Problem, takes: Callable[[Step, Rows], bool]
) -> dict[int, Refusal]:
    """The steps of a layer that would need one copy more than `weight_copies`: place in steps -> why it is refused.

    takes    whether a step takes the layer with m rows when copies do not count
    """
    left = list(every_m(table, route))
    kept: list[str] = []
    denied: dict[int, Refusal] = {}
    for place, step in enumerate(steps):
        won = [m for m in left if takes(step, m)]
        layout = table.kernels[step.kernel].layout
        if not won:
            continue
        if layout != CHECKPOINT and layout not in kept:
            if len(kept) >= route.terms.weight_copies:
                denied[place] = _refusal(route, step, layout, kept, problem)
                continue
            kept.append(layout)
        left = [m for m in left if m not in won]
    return denied


def _refusal(route: Route, step: Step, layout: str, kept: Sequence[str], problem: Problem) -> Refusal:
    terms = route.terms
    copies = f"{terms.weight_copies} packed cop{'y' if terms.weight_copies == 1 else 'ies'} of the weights"
    have = f" besides {', '.join(kept)}" if kept else ""
    found = f"layout {layout}{have}: about {bytes_of(problem)} more"
    return Refusal(step.kernel, "plans.weight_copies", f"at most {copies}", found, terms.mark or route.mark)
