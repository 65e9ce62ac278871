"""Proofs about the steps of a route: those that accept nothing, and those that others always hide.

`require` and `prefer` of a deployment hide steps on purpose; the proofs are about the route without them. A kernel that
promises what one before it does not is not hidden by that one: a deployment may demand the promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kerneltable.model import Device, Route, Step
from kerneltable.select.boxes import Box, meet_all, minus_all
from kerneltable.select.environments import environments
from kerneltable.select.regions import accepted, claimed, simplest_problem
from kerneltable.select.survey import Proof, Survey

LAST_RESORTS = ("emulation", "reference")
PROMISES = ("deterministic", "batch_invariant")
"""Of numerics: what a deployment can demand."""


def prove_steps(survey: Survey) -> Iterator[Proof]:
    """KT501, KT502 and KT503: steps that can never be chosen, whatever the chip and whatever is installed."""
    for route in survey.routes():
        for place in range(len(route.steps)):
            yield from _prove_step(survey, route, place)


def _prove_step(survey: Survey, route: Route, place: int) -> Iterator[Proof]:
    step, before = route.steps[place], _rivals(survey, route, place)
    space, ordinary = survey.space(route.scheme), survey.whole(route.scheme)
    hidden: tuple[Device, list[Box]] | None = None
    alive = False
    for device in survey.devices(route.platform, future=True):
        for here in environments(survey.table, device, step, before):
            alive = alive or bool(meet_all(claimed(survey.table, here, space, step), [ordinary]))
            left = mine = meet_all(accepted(survey.table, here, space, step), [ordinary])
            for other in before:
                left = minus_all(left, accepted(survey.table, here, space, other))
            if left:
                return
            if mine and hidden is None:
                hidden = (device, mine)
    if not alive:
        yield _contradiction(route, place)
    elif hidden is not None:
        yield _hidden(survey, route, place, *hidden)


def _rivals(survey: Survey, route: Route, place: int) -> Sequence[Step]:
    """The steps before one whose kernels promise all that its own promises."""
    kernels = survey.table.kernels
    mine = kernels[route.steps[place].kernel].numerics
    kept = [name for name in PROMISES if getattr(mine, name)]
    return [other for other in route.steps[:place] if all(getattr(kernels[other.kernel].numerics, n) for n in kept)]


def _contradiction(route: Route, place: int) -> Proof:
    step = route.steps[place]
    what = "its row and its `when` together" if step.when else "its row"
    message = f"'{step.kernel}' can never be chosen: {what} accept{'' if step.when else 's'} no problem on any chip"
    help = f"compare the limits of kernels.{step.kernel} with the architectures of {route.platform}"
    help += " and with the step" if step.when else ""
    return Proof("KT501", message, step.mark, _path(route, place), help, length=len(step.kernel))


def _hidden(survey: Survey, route: Route, place: int, device: Device, mine: list[Box]) -> Proof:
    """The step would accept problems, and others take each of them on every chip."""
    step = route.steps[place]
    hiders = _hiders(survey, route, place, device, mine)
    hosts = " and ".join(f"'{other.kernel}' ({other.mark})" for other in hiders)
    last = survey.table.kernels[step.kernel].kind in LAST_RESORTS
    message = f"'{step.kernel}' is never the first choice: {hosts} take{'' if len(hiders) > 1 else 's'} "
    message += "all that it accepts, on every chip"
    if last:
        help = "nothing to do: it still serves when a kernel before it cannot be built"
    else:
        help = f"move it before '{hiders[0].kernel}', narrow that one, or take the step out"
    witness = survey.explain(simplest_problem(survey.space(route.scheme), mine), device)
    code = "KT503" if last else "KT502"
    return Proof(code, message, step.mark, _path(route, place), help, witness, len(step.kernel))


def _hiders(survey: Survey, route: Route, place: int, device: Device, mine: list[Box]) -> Sequence[Step]:
    """The steps that take part of what this one accepts, first come first served."""
    step, before = route.steps[place], _rivals(survey, route, place)
    space = survey.space(route.scheme)
    here = next(environments(survey.table, device, step, before))
    found, left = [], mine
    for other in before:
        taken = accepted(survey.table, here, space, other)
        if meet_all(left, taken):
            found.append(other)
            left = minus_all(left, taken)
    return found


def _path(route: Route, place: int) -> tuple[str | int, ...]:
    return ("routes", route.scheme, route.platform, place)
