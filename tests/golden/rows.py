"""The text of rows.txt: what chips have, what schemes and rows take, what is tried in turn; as the engine answers.

selections.txt shows winners alone; most limits of most rows lie behind one. Here each row is asked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from kerneltable.model import Device, Kernel, Needs, Operand, Predicate, Route, Scheme, Step, Table
from kerneltable.select import device
from kerneltable.select.predicates import FACT_OF, check
from kerneltable.select.select import device_refusals

FILE = Path(__file__).with_name("rows.txt")
SIZES = range(1025)
DTYPES = ("bf16", "f16", "f32")
DETAILS: dict[str, tuple[Any, ...]] = {
    "weight_granularity": ("tensor", "channel", "block"),
    "weight_block": ("128x128", "64x128", "1x32"),
    "weight_scale": ("f32", "bf16", "e8m0"),
    "input_granularity": ("tensor", "token", "block", "none"),
    "input_scaling": ("dynamic", "static", "none"),
    "input": DTYPES,
    "output": DTYPES,
    "bias": (False, True),
}


def lines(table: Table) -> Iterator[str]:
    """The text of rows.txt, line by line."""
    yield "# Written by regenerate.py. What chips have, and what schemes and rows take; rows are asked one by one."
    for platform in table.platforms.values():
        yield f"\n{platform.name}"
        for family in platform.families.values():
            yield f"  {family.name:<12} {_dotted(family.minimum)} to {_dotted(family.maximum)}"
        for chip in platform.architectures.values():
            facts = [_dotted(chip.capability), *chip.families, *sorted(chip.features)]
            facts += [f"{chip.shared_memory_kib} KiB"] if chip.shared_memory_kib else []
            facts += [f"fp8 {chip.fp8}"] if chip.fp8 else []
            facts += [f"code for {chip.target}"] if chip.target else []
            yield f"  {chip.name:<12} {' '.join(filter(None, facts))}"
        yield from (f"  {name:<21} {chip}" for name, chip in platform.devices.items())
    for scheme in table.schemes.values():
        yield from _scheme(scheme)
    for kernel in table.kernels.values():
        yield from _kernel(table, kernel)
    for route in table.routes.values():
        yield from _route(table, route)


def _route(table: Table, route: Route) -> Iterator[str]:
    """What is tried in turn on each chip where everything is installed; chips with the same list share a line."""
    terms = route.terms
    said = [f"packed copies {terms.weight_copies}{'' if terms.mark else ' (nobody says so)'}"]
    yield f"\n{route.scheme} on {route.platform}: {', '.join([*said, *(demand.name for demand in terms.demands)])}"
    chains: dict[str, list[str]] = {}
    for chip in table.platforms[route.platform].architectures:
        where = _all(device(f"{route.platform}:{chip}", table))
        tried = [step for step in route.steps if not device_refusals(table, table.kernels[step.kernel], where)]
        chains.setdefault(" ".join(map(_step, tried)) or "none", []).append(chip)
    yield from (f"  {' '.join(chips)}: {chain}" for chain, chips in chains.items())


def _step(step: Step) -> str:
    sizes = (f"{name} {_sizes(step.kernel, step.when, name)}" for name in ("m", "n", "k"))
    limits = [text for text in sizes if not text.endswith("from 0, every 1") and "unknown" not in text]
    return f"{step.kernel}({'; '.join(limits)})" if step.when else step.kernel


def _scheme(scheme: Scheme) -> Iterator[str]:
    yield f"\n{scheme.name}"
    for name, operand in (("weight", scheme.weight), ("input", scheme.input)):
        yield f"  {name:<12} {_operand(operand)}"
    for parameter in scheme.parameters.values():
        also = f", also {' '.join(parameter.aliases)}" if parameter.aliases else ""
        yield f"  {parameter.name:<16} {'required' if parameter.required else 'optional'}{also}"


def _operand(operand: Operand) -> str:
    blocks = [f"{rows}x{columns}" for rows, columns in operand.blocks] + ["any block"] * operand.any_block
    parts = (operand.formats, operand.granularities, blocks, operand.scales, operand.scalings)
    return "; ".join(" ".join(part) for part in parts if part)


def _kernel(table: Table, kernel: Kernel) -> Iterator[str]:
    said = kernel.numerics
    promises = (("deterministic", said.deterministic), ("same in any batch", said.batch_invariant))
    same = [word for word, holds in promises if holds]
    yield f"\n{kernel.id}: {', '.join([kernel.kind, said.accumulator, *same, f'layout {kernel.layout}'])}"
    yield f"  {'constructor':<18} {' '.join(kernel.parameters)}"
    yield f"  {'chips':<18} {' '.join(_chips(table, kernel)) or 'none'}"
    if "cuda" in kernel.runs_on:
        yield f"  {'capability':<18} {_capabilities(kernel)}"
    needs = (f"{need.name} {need.version or ''}".strip() for need in kernel.needs if isinstance(need, Needs))
    yield f"  {'needs':<18} {', '.join(needs)}"
    yield f"  {'schemes':<18} {' '.join(_taken(kernel, 'scheme', table.schemes))}"
    for name, values in DETAILS.items():
        taken = list(_taken(kernel, name, values))
        if len(taken) < len(values):
            yield f"  {name:<18} {' '.join(taken) or 'none'}"
    for name in ("m", "n", "k"):
        yield f"  {name:<18} {_sizes(kernel.id, kernel.accepts, name)}"


def _capabilities(kernel: Kernel) -> str:
    """The capabilities that the row takes, known chips or not, as far as numbers decide."""
    asked = [p for p in kernel.runs_on["cuda"].predicates if FACT_OF.get(p.key) == "capability"]
    every = [(major, minor) for major in range(5, 22) for minor in range(11)]
    taken = [c for c in every if not any(check(kernel.id, p, {"capability": c, "architecture": None}) for p in asked)]
    if not taken or taken == every:
        return "any" if taken else "none"
    return f"from {_dotted(taken[0])}" + ("" if taken[-1] == every[-1] else f" to {_dotted(taken[-1])}")


def _chips(table: Table, kernel: Kernel) -> Iterator[str]:
    """The chips on which no predicate of `runs_on` refuses, unknown ones of a few capabilities among them."""
    for platform in table.platforms.values():
        names = [*platform.architectures, *(("8.10", "9.9", "12.9", "13.0", "20.1") if platform.families else ())]
        for name in names:
            where = device(f"{platform.name}:{name}", table)
            if not any(r.predicate.startswith("runs_on") for r in device_refusals(table, kernel, _all(where))):
                yield f"{platform.name}:{name}" if name[0].isdigit() else name
        if platform.name in kernel.runs_on and kernel.runs_on[platform.name].portable:
            yield f"{platform.name}:any"


def _all(where: Device) -> Device:
    return Device(where.platform, where.architecture, where.name, where.capability, assume_all=True)


def _taken(kernel: Kernel, fact: str, values: Iterable[Any]) -> Iterator[str]:
    asked = [p for p in kernel.accepts if FACT_OF.get(p.key) == fact]
    for value in values:
        if not any(check(kernel.id, predicate, {fact: value}) for predicate in asked):
            yield str(value).lower()


def _sizes(kernel: str, predicates: Iterable[Predicate], name: str) -> str:
    """The sizes that all limits take: "from 16, every 16", found by asking about each up to 1024."""
    asked = [p for p in predicates if FACT_OF.get(p.key) == name]
    taken = [size for size in SIZES if not any(check(kernel, p, {name: size}) for p in asked)]
    if not taken:
        return "none up to 1024"
    steps = {later - earlier for earlier, later in pairwise(taken)} or {0}
    every = " ".join(map(str, sorted(steps)))
    last = "" if taken[-1] + max(steps) > SIZES[-1] else f", to {taken[-1]}"
    unknown = ", unknown too" if name == "m" and not any(check(kernel, p, {name: None}) for p in asked) else ""
    return f"from {taken[0]}, every {every}{last}{unknown}"


def _dotted(capability: tuple[int, int] | None) -> str:
    return "" if capability is None else f"{capability[0]}.{capability[1]}"
