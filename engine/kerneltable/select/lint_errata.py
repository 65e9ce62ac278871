"""Proofs about errata: one that can never hold denies nothing, and the kernel that it was meant for goes on running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kerneltable.model import Denial, Device, Needs, Route, Step
from kerneltable.select.boxes import meet
from kerneltable.select.regions import claimed, denied
from kerneltable.select.survey import Proof, Survey


def prove_errata(survey: Survey) -> Iterator[Proof]:
    """KT509, whatever is installed, whatever the model is, and as the routes were before overrides took kernels out."""
    errata = [denial for denial in survey.table.denials if denial.source == "erratum"]
    for place, denial in enumerate(errata):
        if not any(_holds(survey, denial, route) for route in survey.routes()):
            message = f"'{denial.kernel}' is never denied here: no problem that it takes fits `when` on any chip"
            help = f"compare `when` with kernels.{denial.kernel} and the routes that list it"
            yield Proof("KT509", message, denial.mark, ("errata", place, "deny"), help, length=len(denial.kernel))


def _holds(survey: Survey, denial: Denial, route: Route) -> bool:
    """Whether there is a device of the route's platform, and a problem, for which the erratum denies the kernel."""
    listed = [step for step in route.steps if step.kernel == denial.kernel]
    listed += [Step(gone.kernel, (), gone.mark) for gone in route.removed if gone.kernel == denial.kernel]
    listed += [Step(c.kernel, (), c.mark) for c in (route.require, route.prefer) if c and c.kernel == denial.kernel]
    anyone = replace(denial, models=(), predicates=tuple(p for p in denial.predicates if not _version(p)))
    devices = [replace(device, assume_all=True) for device in survey.devices(route.platform, future=True)]
    return any(_meets(survey, anyone, step, (route.scheme, device)) for step in listed for device in devices)


def _meets(survey: Survey, denial: Denial, step: Step, where: tuple[str, Device]) -> bool:
    scheme, device = where
    space = survey.space(scheme)
    box = denied(survey.table, device, space, denial)
    return box is not None and any(meet(box, taken) for taken in claimed(survey.table, device, space, step))


def _version(predicate: object) -> bool:
    """Whether a condition speaks of what is installed, which no table knows."""
    return isinstance(predicate, Needs) and predicate.version is not None
