"""A table as a flat list of values: path, text, place. What `show` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kerneltable.errors import ProblemError
from kerneltable.model import (
    Denial,
    Kernel,
    Mark,
    MultipleOf,
    Needs,
    OneOf,
    Platform,
    Predicate,
    Range,
    Route,
    Scheme,
    Table,
)
from kerneltable.names import hint

Path = tuple[str, ...]
Value = tuple[Path, str, Mark]


def values_of(table: Table) -> list[Value]:
    """Every value of the effective table in the order of the file's sections."""
    values: list[Value] = []
    for platform in table.platforms.values():
        values += _platform(table, platform)
    for scheme in table.schemes.values():
        values += _scheme(scheme)
    for kernel in table.kernels.values():
        values += _kernel(table, kernel)
    for route in table.routes.values():
        values += _route(route)
    for place, denial in enumerate(table.denials):
        values += _denial(place, denial)
    return values


def check_path(paths: Sequence[Path], path: str) -> None:
    """ProblemError with the nearest name when no path lies at or below a dotted one."""
    parts = tuple(part for part in path.split(".") if part)
    known = 0
    while known < len(parts) and any(other[: known + 1] == parts[: known + 1] for other in paths):
        known += 1
    if known == len(parts):
        return
    names = {other[known] for other in paths if len(other) > known and other[:known] == parts[:known]}
    where = ".".join(parts[:known]) or "the table"
    raise ProblemError(
        f"'{path[:100]}' is not in the table: {where} has no '{parts[known][:60]}'; {hint(parts[known], names)}"
    )


def _platform(table: Table, platform: Platform) -> Iterator[Value]:
    top = ("platforms", platform.name)
    for family in platform.families.values():
        yield (*top, "families", family.name), f"{_number(family.minimum)} to {_number(family.maximum)}", family.mark
    for chip in platform.architectures.values():
        path = (*top, "architectures", chip.name)
        facts = {
            "capability": None if chip.capability is None else _number(chip.capability),
            "family": ", ".join(chip.families),
            "features": ", ".join(sorted(chip.features)),
            "shared_memory_kib": chip.shared_memory_kib,
            "fp8": chip.fp8,
            "target": chip.target,
        }
        for name, fact in facts.items():
            if fact not in (None, ""):
                yield (*path, name), str(fact), table.marks.get((*path, name), chip.mark)
    for name, architecture in platform.devices.items():
        path = (*top, "devices", name)
        yield path, architecture, table.marks.get(path, platform.mark)


def _scheme(scheme: Scheme) -> Iterator[Value]:
    top = ("schemes", scheme.name)
    yield (*top, "summary"), scheme.summary, scheme.mark
    for name, operand in (("weight", scheme.weight), ("input", scheme.input)):
        facts = {
            "format": operand.formats,
            "granularity": operand.granularities,
            "block": tuple(f"{rows}x{columns}" for rows, columns in operand.blocks),
            "scale": operand.scales,
            "scaling": operand.scalings,
        }
        for key, fact in facts.items():
            if fact:
                yield (*top, name, key), ", ".join(fact), operand.mark
    for parameter in scheme.parameters.values():
        text = ("required" if parameter.required else "optional") + "".join(f", or {a}" for a in parameter.aliases)
        yield (*top, "parameters", parameter.name), text, parameter.mark


def _kernel(table: Table, kernel: Kernel) -> Iterator[Value]:
    top = ("kernels", kernel.id)
    plain = {
        "summary": kernel.summary,
        "parameters": ", ".join(kernel.parameters),
        "layout": kernel.layout,
        "kind": kernel.kind,
        "status": kernel.status,
        "why": kernel.why,
    }
    for name, text in plain.items():
        yield (*top, name), text, table.marks.get((*top, name), kernel.mark)
    numerics = kernel.numerics
    for name in ("accumulator", "deterministic", "batch_invariant"):
        yield (*top, "numerics", name), _plain(getattr(numerics, name)), numerics.mark
    for runs_on in kernel.runs_on.values():
        path = (*top, "runs_on", runs_on.platform)
        yield (*path, "portable"), _plain(runs_on.portable), runs_on.mark
        yield from _predicates(runs_on.predicates, path)
    yield from _predicates(kernel.needs, (*top, "needs"))
    yield from _predicates(kernel.accepts, (*top, "accepts"))


def _route(route: Route) -> Iterator[Value]:
    top = ("routes", route.scheme, route.platform)
    for verb, choice in (("require", route.require), ("prefer", route.prefer)):
        if choice is not None:
            yield (*top, verb), choice.kernel, choice.mark
    for place, step in enumerate(route.steps):
        yield (*top, str(place)), step.kernel, step.mark
        yield from _predicates(step.when, (*top, str(place), "when"))
    yield from _terms(route)


def _terms(route: Route) -> Iterator[Value]:
    """What the plans of a route keep to, as far as somebody said so."""
    top = ("routes", route.scheme, route.platform, "plans")
    terms = route.terms
    if terms.mark is not None:
        yield (*top, "weight_copies"), str(terms.weight_copies), terms.mark
    for demand in terms.demands:
        yield (*top, demand.name), "true", demand.mark


def _denial(place: int, denial: Denial) -> Iterator[Value]:
    section = "errata" if denial.source == "erratum" else "disable"
    top = (section, str(place))
    facts = {"kernel": denial.kernel, "platform": denial.platform, "reason": denial.reason, "link": denial.link}
    for name, fact in {**facts, "until": denial.until}.items():
        if fact:
            yield (*top, name), fact, denial.mark
    if denial.models:
        yield (*top, "when", "models"), ", ".join(denial.models), denial.mark
    yield from _predicates(denial.predicates, (*top, "when"))


def _predicates(predicates: Iterable[Predicate], top: Path) -> Iterator[Value]:
    for predicate in predicates:
        path = (*top, *predicate.key.split(".")[1:])
        if isinstance(predicate, OneOf):
            yield path, ", ".join(_plain(value) for value in predicate.values), predicate.mark
        elif isinstance(predicate, Range):
            ends = (end for end in (predicate.minimum, predicate.maximum) if end is not None)
            yield path, " to ".join(_number(end) for end in ends), predicate.mark
        elif isinstance(predicate, MultipleOf):
            yield path, str(predicate.divisor), predicate.mark
        elif isinstance(predicate, Needs):
            yield (*path, predicate.name), predicate.version or "needed", predicate.mark


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: int | tuple[int, ...]) -> str:
    return ".".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
