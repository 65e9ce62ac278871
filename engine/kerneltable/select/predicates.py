"""Predicates: one evaluation for each of the four forms, and the table of every key with the fact that it reads.

The check itself returns the Refusal with what was wanted and what was found; nothing recomputes it later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from kerneltable.errors import KernelTableError
from kerneltable.model import Device, MultipleOf, Needs, OneOf, Predicate, Problem, Range, Refusal, Table
from kerneltable.model.predicates import LARGEST_SIZE
from kerneltable.select.versions import distribution, version_fits

Facts = Mapping[str, Any]
Miss = tuple[str, str] | None
Sized = tuple[Predicate, str, int, int, int, str]
SIZES = frozenset({"m", "n", "k"})


class _Unasked:
    """Stands for a fact that has no meaning here, such as the block of a weight that has one scale a tensor."""


UNASKED = _Unasked()

DEVICE_LEAVES = MappingProxyType(
    {
        "capability.min": "capability",
        "capability.max": "capability",
        "architectures": "architecture",
        "families": "families",
        "features": "features",
        "fp8": "fp8",
    }
)
NEED_LEAVES = MappingProxyType({"packages": "packages", "ops": "ops"})
PROBLEM_LEAVES = MappingProxyType(
    {
        "schemes": "scheme",
        "weight_granularity": "weight_granularity",
        "weight_block": "weight_block",
        "weight_scale": "weight_scale",
        "input_granularity": "input_granularity",
        "input_scaling": "input_scaling",
        "input": "input",
        "output": "output",
        "bias": "bias",
        **{f"{size}.{leaf}": size for size in "mnk" for leaf in ("min", "max", "multiple_of")},
    }
)
FACT_OF: Mapping[str, str] = MappingProxyType(
    {
        **{f"runs_on.{leaf}": fact for leaf, fact in DEVICE_LEAVES.items()},
        **{f"needs.{leaf}": fact for leaf, fact in NEED_LEAVES.items()},
        **{f"accepts.{leaf}": fact for leaf, fact in PROBLEM_LEAVES.items()},
        **{f"when.{leaf}": fact for leaf, fact in {**DEVICE_LEAVES, **NEED_LEAVES, **PROBLEM_LEAVES}.items()},
    }
)


def device_facts(table: Table, device: Device) -> dict[str, Any]:
    """What predicates may ask about a device; the chip's facts come from the table, not from the Device.

    features is None when the table does not know the chip: a need for one is then refused.
    needs, refused, kinds and few layouts remember what needs for packages and ops, rows, kinds of problems and the
    packed layouts of a scheme's rows came to here.
    """
    platform = table.platforms.get(device.platform)
    chip = platform.architectures.get(device.architecture or "") if platform else None
    capability = chip.capability if chip else device.capability
    families: tuple[str, ...] = chip.families if chip else ()
    if chip is None and platform is not None and capability is not None:
        families = tuple(f.name for f in platform.families.values() if f.minimum <= capability <= f.maximum)
    return {
        "capability": capability,
        "architecture": chip.name if chip else None,
        "families": families,
        "features": chip.features if chip else None,
        "fp8": chip.fp8 if chip else None,
        "packages": {distribution(name): version for name, version in device.packages.items()},
        "ops": device.ops,
        "assume_all": device.assume_all,
        "needs": {},
        "refused": {},
        "kinds": {},
        "few layouts": {},
    }


def problem_facts(problem: Problem) -> dict[str, Any]:
    """What predicates may ask about a completed problem."""
    block = problem.weight_block
    return {
        "scheme": problem.scheme,
        "weight_granularity": problem.weight_granularity,
        "weight_block": UNASKED if block is None else f"{block[0]}x{block[1]}",
        "weight_scale": problem.weight_scale,
        "input_granularity": problem.input_granularity,
        "input_scaling": problem.input_scaling,
        "input": problem.input,
        "output": problem.output,
        "bias": problem.bias,
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
    }


def check(kernel: str, predicate: Predicate, facts: Facts) -> Refusal | None:
    """Hold one predicate of a kernel, route step or denial against the facts; None when it fits."""
    found = misses(kernel, (predicate,), facts)
    return found[0] if found else None


def misses(kernel: str, predicates: Iterable[Predicate], facts: Facts) -> list[Refusal]:
    """Hold predicates against the facts; a Refusal for each one that does not fit.

    An m that is not known (None) fits no predicate on m. A package whose version is None fits every version.
    errors    KernelTableError for a key that no fact answers
    """
    found = []
    for predicate in predicates:
        key = predicate.key
        if key not in FACT_OF:
            raise KernelTableError(f"{predicate.mark}: no fact answers the predicate key '{key}'")
        miss = _FORMS[type(predicate)](predicate, FACT_OF[key], facts)
        if miss is not None:
            found.append(Refusal(kernel, key, miss[0], miss[1], predicate.mark))
    return found


def sized(predicate: Predicate) -> Sized:
    """A limit on m, n or k as (itself, size, low, high, divisor, what it wants); one that is no such limit is met by
    nothing."""
    low, high, divisor = 0, LARGEST_SIZE, 1
    if isinstance(predicate, MultipleOf):
        divisor = predicate.divisor
    elif isinstance(predicate, Range):
        low = predicate.minimum if isinstance(predicate.minimum, int) else low
        high = predicate.maximum if isinstance(predicate.maximum, int) else high
    else:
        high = -1
    return predicate, FACT_OF[predicate.key], low, high, divisor, _wanted(predicate)


def unfit(kernel: str, limits: Iterable[Sized], facts: Facts) -> list[Refusal]:
    """A Refusal for each limit that the sizes miss; what `misses` gives for the same predicates, in less time."""
    return [
        Refusal(kernel, limit.key, wanted, "unknown" if size is None else str(size), limit.mark)
        for limit, name, low, high, divisor, wanted in limits
        if (size := facts[name]) is None or not low <= size <= high or size % divisor
    ]


def _wanted(limit: Predicate) -> str:
    """What a limit on a size wants, for a reader."""
    if isinstance(limit, MultipleOf):
        return f"multiple of {limit.divisor}"
    if isinstance(limit, Range):
        low, high = limit.minimum, limit.maximum
        return f"at least {_number(low)}" if low is not None else f"at most {_number(high)}"
    values = [_number(value) for value in getattr(limit, "values", ())]
    return values[0] if len(values) == 1 else f"one of {', '.join(values)}"


def _one_of(predicate: OneOf, name: str, facts: Facts) -> Miss:
    fact = facts[name]
    if fact in predicate.values or fact is UNASKED:
        return None
    if name == "families" and any(family in predicate.values for family in fact):
        return None
    values = [_shown(name, value, facts) for value in predicate.values]
    wanted = values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if name == "fp8" and fact is None:
        return wanted, f"none on {chip_name(facts)}"
    if name in ("architecture", "families"):
        return wanted, chip_name(facts)
    return wanted, _shown(name, fact, facts)


def _range(predicate: Range, name: str, facts: Facts) -> Miss:
    fact, low, high = facts[name], predicate.minimum, predicate.maximum
    if fact is not None and (low is None or low <= fact) and (high is None or fact <= high):
        return None
    return _wanted(predicate), _shown(name, fact, facts)


def _multiple_of(predicate: MultipleOf, name: str, facts: Facts) -> Miss:
    fact = facts[name]
    if fact is not None and fact % predicate.divisor == 0:
        return None
    return _wanted(predicate), _shown(name, fact, facts)


def _needs(predicate: Needs, name: str, facts: Facts) -> Miss:
    if name == "features":
        return _needs_feature(predicate.name, facts)
    known: dict[tuple[str, str | None], Miss] = facts["needs"]
    question = (predicate.name, predicate.version)
    if question not in known:
        known[question] = _needs_installed(predicate, name, facts)
    return known[question]


def _needs_installed(predicate: Needs, name: str, facts: Facts) -> Miss:
    if facts["assume_all"]:
        return None
    if name == "ops":
        return None if predicate.name in facts["ops"] else (f"op {predicate.name}", "not registered")
    wanted = f"package {predicate.name}" + (f" {predicate.version}" if predicate.version else "")
    package = distribution(predicate.name)
    if package not in facts["packages"]:
        return wanted, "not installed"
    version = facts["packages"][package]
    if version is None or predicate.version is None or version_fits(predicate.version, version):
        return None
    return wanted, str(version)


def _needs_feature(feature: str, facts: Facts) -> Miss:
    features = facts["features"]
    if features is None:
        return feature, f"unknown ({chip_name(facts)})"
    return None if feature in features else (feature, f"absent on {chip_name(facts)}")


_FORMS: Mapping[type, Callable[[Any, str, Facts], Miss]] = MappingProxyType(
    {OneOf: _one_of, Range: _range, MultipleOf: _multiple_of, Needs: _needs}
)


def _number(value: Any) -> str:
    return ".".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def chip_name(facts: Facts) -> str:
    """The chip for a reader: "sm80", or "unknown capability 13.0" for one that the table does not know."""
    if facts["architecture"] is not None:
        return str(facts["architecture"])
    capability = facts["capability"]
    return "an unknown chip" if capability is None else f"unknown capability {_number(capability)}"


def _shown(name: str, fact: Any, facts: Facts) -> str:
    """A fact for a reader: sizes and names as they are, a capability with its chip, an unknown as "unknown"."""
    if name == "capability" and fact is None:
        return f"no capability ({chip_name(facts)})"
    if name == "capability":
        return f"{_number(fact)} ({facts['architecture'] or 'unknown chip'})"
    if name == "bias":
        return "bias" if fact else "no bias"
    return "unknown" if fact is None else _number(fact)


def describe_chip(table: Table, device: Device) -> str:
    """The chip as refusals name it: "sm80", or "unknown capability 13.0"."""
    return chip_name(device_facts(table, device))
