"""The table's choice for a layer, or a caller's; the text that says why nothing is left; the warning of slow paths."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from kerneltable.errors import NoKernelError
from kerneltable.model import Candidate, Device, Problem, Selection, Table
from kerneltable.run.ledger import BANDS, named, say
from kerneltable.select import complete, refusals, select
from kerneltable.select.bands import Rows, rows_of

FASTER = ("native", "weight_only")
SLOW = ("emulation", "reference")
HOSTS = frozenset({"cpu"})
FORCED = "forced by the caller"
"""The note of a selection that the table had no say in."""


def choose(table: Table, device: Device, problem: Problem, force: str | None = None) -> Selection:
    """The table's selection, or the forced kernel's own verdict as a selection of one candidate.

    errors    NoKernelError when a forced kernel is unknown or refuses
    """
    if force is None:
        return select(table, device, problem)
    if force not in table.kernels:
        known = ", ".join(sorted(table.kernels))
        raise NoKernelError(
            f"kernel '{force[:200]}' is not in the table; it has {known}", Selection(None, (), problem, device)
        )
    problem = complete(table.schemes[problem.scheme], problem)
    refused = tuple(refusals(table, force, device, problem))
    candidate = Candidate(force, "refused" if refused else "chosen", refused, table.kernels[force].mark)
    selection = Selection(None if refused else force, (candidate,), problem, device, (FORCED,))
    if refused:
        raise NoKernelError(no_kernel_text(selection), selection)
    return selection


def in_order(selection: Selection) -> list[str]:
    """The chosen kernel, then those that would do too, in the order of the route."""
    if selection.kernel is None:
        return []
    return [selection.kernel] + [c.kernel for c in selection.candidates if c.verdict == "later"]


def required_kernel(table: Table, device: Device, scheme: str, force: str | None) -> str | None:
    """The kernel that must be taken, as the caller or the table's route says; None when the order decides."""
    route = table.routes.get((scheme, device.platform))
    return force or (route.require.kernel if route is not None and route.require is not None else None)


@dataclass(slots=True)
class Choices:
    """The selections of one layer, one for each band of m that its route tells apart; a band is asked for once.

    unknown  the selection for an unknown m, and for every m when the route does not look at m, or `force` is given
    """

    table: Table
    device: Device
    unknown: Selection
    force: str | None = None
    rows: Rows | None = field(init=False)
    _orders: dict[Hashable, tuple[str, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = None if self.force else rows_of(self.table, self.device, self.unknown.problem.scheme)

    @property
    def one_kernel(self) -> bool:
        """Whether a deployment demands rows that do not depend on the others, so that one kernel serves every m."""
        problem = self.unknown.problem
        route = self.table.routes.get((problem.scheme, self.device.platform))
        return route is not None and route.terms.one_kernel is not None

    @property
    def steady(self) -> bool:
        """Whether one kernel comes first for every m, or none does: then a call need not say its m first."""
        return len({self.order(m)[:1] for m in (None, *self.rows_of_bands())}) == 1

    def order(self, m: int | None) -> tuple[str, ...]:
        """The kernels for m rows (None: unknown), the chosen one first: a bisection of the bands, and one look-up."""
        place = None if m is None or self.rows is None else self.rows.place(m)
        known = self._orders.get(place)
        if known is None:
            known = self._orders[place] = tuple(in_order(self.selection(m)))
        return known

    def rows_of_bands(self) -> tuple[int, ...]:
        """One m of each band that the route tells apart, or the ledger (kernels are set aside for bands of m)."""
        starts = {1, *(last + 1 for last in BANDS), *(() if self.rows is None else self.rows.starts)}
        divisors = (1, *(() if self.rows is None else self.rows.divisors))
        multiples = {-(-start // divisor) * divisor for start in starts for divisor in divisors}
        return tuple(sorted(multiples | {m + 1 for m in multiples - starts}))

    def selection(self, m: int | None) -> Selection:
        """The answer for m rows with every candidate and its refusals."""
        if m is None or self.rows is None:
            return self.unknown
        return choose(self.table, self.device, self.unknown.problem.at(m), self.force)


def no_kernel_text(selection: Selection, reasons: Sequence[str] = ()) -> str:
    """Every candidate with all of its refusals, what failed here, and the next step."""
    problem = selection.problem
    rows = "" if problem.m is None else f" m={problem.m}"
    lines = [
        f"no kernel for {problem.scheme}{rows} n={problem.n} k={problem.k} input={problem.input} "
        f"output={problem.output} on {named(selection.device)}"
    ]
    for candidate in selection.candidates:
        lines += [f"  {candidate.kernel}: {refusal}" for refusal in candidate.refusals]
    lines += [f"  {reason}" for reason in reasons]
    lines += [f"  {note}" for note in selection.notes]
    lines.append(f"  next: {_next_step(selection)}")
    return "\n".join(lines)


def _next_step(selection: Selection) -> str:
    """What mends a selection without a kernel, by who left it so."""
    if FORCED in selection.notes:
        return "force no kernel, so that the table decides, or one that `kerneltable explain` does not list as refused"
    if any(refusal.predicate == "require" for one in selection.candidates for refusal in one.refusals):
        return "require another kernel of the route, or say `prefer`, so that the others may be taken"
    return "add a kernel or a `reference` step to the route, or ask `kerneltable explain` for a near shape"


def warn_of_slow_path(table: Table, selection: Selection, kernel: str, reasons: Sequence[str]) -> None:
    """Warn, once for each table, device, scheme and kernel, that faster kernels fell, and why."""
    device = selection.device
    if device.platform in HOSTS or table.kernels[kernel].kind not in SLOW:
        return
    faster = [c for c in selection.candidates if table.kernels[c.kernel].kind in FASTER and c.refusals]
    key, mine = ("slow path", device, selection.problem.scheme, kernel), object()
    if not (faster or reasons) or table.answers.setdefault(key, mine) is not mine:
        return
    why = [f"{c.kernel}: {c.refusals[0]}" for c in faster] + list(reasons)
    say(
        logging.WARNING,
        "slow path: %s (%s) computes %s on %s; the faster kernels refuse: %s",
        kernel,
        table.kernels[kernel].kind,
        selection.problem.scheme,
        named(device),
        "; ".join(why),
    )
