"""The table's choice for a layer, or a caller's; the text that says why nothing is left; the warning of slow paths."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kerneltable.errors import NoKernelError
from kerneltable.model import Candidate, Device, Predicate, Problem, Route, Selection, Table
from kerneltable.run.ledger import named, say
from kerneltable.select import complete, refusals, select

FASTER = ("native", "weight_only")
SLOW = ("emulation", "reference")
HOSTS = frozenset({"cpu"})


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
    selection = Selection(None if refused else force, (candidate,), problem, device, ("forced by the caller",))
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


def looks_at_rows(table: Table, device: Device, scheme: str) -> bool:
    """True when the choice for this scheme on this platform can change with m."""
    route = table.routes.get((scheme, device.platform))
    if route is None:
        return False
    kernels = _kernels_of(route)
    groups: list[tuple[Predicate, ...]] = [step.when for step in route.steps]
    groups += [table.kernels[kernel].accepts for kernel in kernels]
    groups += [denial.predicates for denial in table.denials if denial.kernel in kernels]
    return any("m" in predicate.key.split(".") for group in groups for predicate in group)


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
    lines.append(
        "  next: add a kernel or a `reference` step to the route, or ask `kerneltable explain` for a near shape"
    )
    return "\n".join(lines)


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


def _kernels_of(route: Route) -> set[str]:
    found = {step.kernel for step in route.steps}
    return found | {choice.kernel for choice in (route.require, route.prefer) if choice is not None}
