"""What may be installed: for a step of a route, the environments in which it has the best chance.

A step is out of reach only when the steps before it hide it whatever is installed. Packages are independent of each
other, so for each one only the versions matter that no other version beats: those that fit the step, and as few of
the steps before it as possible. That is exact, and mostly one environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from re import findall

from kerneltable.model import Device, Needs, Predicate, Step, Table
from kerneltable.select.predicates import FACT_OF, misses
from kerneltable.select.versions import distribution, numbers

Version = str | None
Wish = tuple[Needs, bool]
"""A need, and whether it should be met."""


def environments(table: Table, device: Device, step: Step, before: Sequence[Step]) -> Iterator[Device]:
    """The device with each set of packages and ops that no other set beats for this step; none when it cannot run."""
    must, wishes = _wishes(table, step, before)
    choices: list[list[tuple[str, str, Version]]] = []
    for fact, name in dict.fromkeys(_named(need) for need, _ in (*must, *wishes)):
        own = [wish for wish in must if _named(wish[0]) == (fact, name)]
        hoped = [wish for wish in wishes if _named(wish[0]) == (fact, name)]
        best = _best(fact, name, own, hoped)
        choices.append([(fact, name, version) for version in best])
    for installed in product(*choices):
        packages = {name: version for fact, name, version in installed if fact == "packages" and version is not None}
        ops = frozenset(name for fact, name, version in installed if fact == "ops" and version is not None)
        yield replace(device, packages=packages, ops=ops, assume_all=False)


def _wishes(table: Table, step: Step, before: Sequence[Step]) -> tuple[list[Wish], list[Wish]]:
    """What must be met, and what helps when it is (True) or is not (False) met."""
    must = [(need, True) for need in _needs((*table.kernels[step.kernel].needs, *step.when))]
    others = {other.kernel for other in before} - {step.kernel}
    wishes = [(need, False) for other in before for need in _needs((*table.kernels[other.kernel].needs, *other.when))]
    for denial in table.denials:
        if denial.kernel == step.kernel:
            wishes += [(need, False) for need in _needs(denial.predicates)]
        elif denial.kernel in others:
            wishes += [(need, True) for need in _needs(denial.predicates)]
    return must, wishes


def all_needs(table: Table, fact: str) -> Iterator[Needs]:
    """Every need that any row, step or denial of the table states for one of "packages" and "ops"."""
    groups: list[tuple[Predicate, ...]] = [kernel.needs for kernel in table.kernels.values()]
    groups += [step.when for route in table.routes.values() for step in route.steps]
    groups += [denial.predicates for denial in table.denials]
    for group in groups:
        yield from (need for need in _needs(group) if FACT_OF[need.key] == fact)


def _needs(predicates: Iterable[Predicate]) -> list[Needs]:
    return [p for p in predicates if isinstance(p, Needs) and FACT_OF[p.key] in ("packages", "ops")]


def _named(need: Needs) -> tuple[str, str]:
    fact = FACT_OF[need.key]
    return fact, distribution(need.name) if fact == "packages" else need.name


def _best(fact: str, name: str, must: Sequence[Wish], wishes: Sequence[Wish]) -> list[Version]:
    """The versions (None: not installed) that meet every must, without those that another one beats."""
    scored: dict[frozenset[int], Version] = {}
    for version in _versions(fact, [need for need, _ in (*must, *wishes)]):
        if all(_met(fact, name, version, need) for need, _ in must):
            good = frozenset(i for i, (need, wanted) in enumerate(wishes) if _met(fact, name, version, need) == wanted)
            scored.setdefault(good, version)
    return [version for good, version in scored.items() if not any(good < other for other in scored)]


def _met(fact: str, name: str, version: Version, need: Needs) -> bool:
    here = version is not None
    facts = {
        "packages": {name: version} if here and fact == "packages" else {},
        "ops": frozenset({name}) if here and fact == "ops" else frozenset(),
        "assume_all": False,
        "needs": {},
    }
    return not misses("", (need,), facts)


def _versions(fact: str, needs: Sequence[Needs]) -> list[Version]:
    """Absent, and one version of each stretch that the bounds cannot tell apart, newest first."""
    if fact == "ops":
        return [None, "registered"]
    bounds = {numbers(text) for need in needs for text in findall(r"[0-9][0-9.]*", need.version or "")}
    longest = max((len(bound) for bound in bounds), default=1)
    found: set[tuple[int, ...]] = {(0,)}
    for bound in bounds:
        found |= {bound or (0,), (*bound, *(0,) * (longest - len(bound)), 1)}
    return [None, *(".".join(str(part) for part in version) for version in sorted(found, reverse=True))]
