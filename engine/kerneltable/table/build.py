"""Checked nodes to the frozen Table. Nothing here can find fault: every check has been made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from kerneltable.model import (
    Architecture,
    Choice,
    Demand,
    Denial,
    Family,
    Kernel,
    Layer,
    Mark,
    Numerics,
    OneOf,
    Operand,
    Parameter,
    Platform,
    Predicate,
    Route,
    RunsOn,
    Scheme,
    Step,
    Table,
    Terms,
    Verified,
)
from kerneltable.table.merge import Merged, RouteKey, all_routes, kernel_of
from kerneltable.table.names import entries, items
from kerneltable.table.node import Node, walk
from kerneltable.table.platforms import CAPABLE, features_of, inherited, resolved_capability
from kerneltable.table.predicates import predicates
from kerneltable.table.report import Path
from kerneltable.table.specs import capability

K = TypeVar("K")
V = TypeVar("V")


def build_table(merged: Merged, layers: tuple[Layer, ...]) -> Table:
    """The Table of a document that every check has passed, with the mark of every value."""
    root = merged.root
    return Table(
        version=root.value["table"].value,
        platforms=_frozen({name: _platform(name, node) for name, node in entries(root, "platforms").items()}),
        schemes=_frozen({name: _scheme(name, node) for name, node in entries(root, "schemes").items()}),
        kernels=_frozen({name: _kernel(name, node, root) for name, node in entries(root, "kernels").items()}),
        routes=_frozen(dict(_routes(merged))),
        denials=tuple(_denials(merged)),
        layers=layers,
        marks=_frozen(_marks(merged)),
    )


def _frozen(values: dict[K, V]) -> Mapping[K, V]:
    return MappingProxyType(values)


def _value(node: Node, *path: str, default: Any = None) -> Any:
    """The scalar at a path, or the default when there is none."""
    found = node.at(*path)
    return default if found is None else found.value


def _texts(node: Node, *path: str) -> tuple[str, ...]:
    return tuple(text for text, _ in items(node, *path))


def _platform(name: str, node: Node) -> Platform:
    architectures = entries(node, "architectures")
    families = {
        family: Family(family, capability(_value(entry, "min")), capability(_value(entry, "max")), entry.mark)
        for family, entry in entries(node, "families").items()
    }
    return Platform(
        name,
        _frozen({chip: _architecture(chip, name, architectures, families) for chip in architectures}),
        _frozen(families),
        _frozen({device: entry.value for device, entry in entries(node, "devices").items()}),
        node.mark,
    )


def _architecture(
    name: str, platform: str, architectures: Mapping[str, Node], families: Mapping[str, Family]
) -> Architecture:
    number = resolved_capability(architectures, name) if platform == CAPABLE else None
    inside = (family.name for family in families.values() if number and family.minimum <= number <= family.maximum)
    memory = inherited(architectures, name, "shared_memory_kib")
    fp8 = inherited(architectures, name, "fp8")
    target = inherited(architectures, name, "target")
    return Architecture(
        name=name,
        platform=platform,
        capability=number,
        families=tuple(inside),
        features=features_of(architectures, name),
        shared_memory_kib=None if memory is None else memory.value,
        fp8=None if fp8 is None else fp8.value,
        mark=architectures[name].mark,
        target=None if target is None else target.value,
    )


def _scheme(name: str, node: Node) -> Scheme:
    parameters = {
        key: Parameter(key, _value(entry, "required", default=False), _texts(entry, "aliases"), entry.mark)
        for key, entry in entries(node, "parameters").items()
    }
    weight, x = node.value["weight"], node.value["input"]
    return Scheme(name, _value(node, "summary"), _operand(weight), _operand(x), _frozen(parameters), node.mark)


def _operand(node: Node) -> Operand:
    blocks = (text.split("x") for text in _texts(node, "block"))
    return Operand(
        formats=_texts(node, "format"),
        granularities=_texts(node, "granularity"),
        blocks=tuple((int(rows), int(columns)) for rows, columns in blocks),
        any_block=_value(node, "any_block", default=False),
        scales=_texts(node, "scale"),
        scalings=_texts(node, "scaling"),
        mark=node.mark,
    )


def _kernel(name: str, node: Node, root: Node) -> Kernel:
    runs_on = {
        platform: RunsOn(
            platform, _value(entry, "portable", default=False), tuple(predicates(entry, "runs_on")), entry.mark
        )
        for platform, entry in entries(node, "runs_on").items()
    }
    rounding = node.value["numerics"]
    verified = node.at("verified")
    return Kernel(
        id=name,
        summary=_value(node, "summary"),
        parameters=_texts(node, "parameters"),
        runs_on=_frozen(runs_on),
        needs=_below(node, "needs"),
        accepts=_below(node, "accepts"),
        layout=_value(node, "layout"),
        numerics=Numerics(
            _value(rounding, "accumulator"),
            _value(rounding, "deterministic"),
            _value(rounding, "batch_invariant"),
            rounding.mark,
        ),
        kind=_value(node, "kind"),
        status=_value(node, "status"),
        verified=tuple(Verified(_value(v, "device"), _value(v, "date")) for v in verified.items()) if verified else (),
        why=_value(node, "why"),
        mark=root.value["kernels"].keys[name],
    )


def _below(node: Node, key: str) -> tuple[Predicate, ...]:
    found = node.at(key)
    return () if found is None else tuple(predicates(found, key))


def _routes(merged: Merged) -> Iterator[tuple[RouteKey, Route]]:
    for key, node in all_routes(merged.root).items():
        steps = tuple(Step(kernel_of(step) or "", _below(step, "when"), step.mark) for step in node.items())
        require, prefer = _choice(merged.require.get(key)), _choice(merged.prefer.get(key))
        terms = _terms(merged.root.at("plans"), merged.plans.get(key))
        removed = tuple(Choice(name, mark) for (route, name), mark in merged.removed.items() if route == key)
        yield key, Route(key[0], key[1], steps, require, prefer, node.mark, terms, removed)


def _terms(every: Node | None, own: Node | None) -> Terms:
    """What the plans of a route keep to: its own word, else that for all routes, else the default."""
    said = {name: node for plans in (every, own) if plans is not None for name, node in plans.entries().items()}
    wanted = [name for name in ("batch_invariant", "deterministic") if name in said and said[name].value]
    demands = tuple(Demand(name, said[name].mark) for name in wanted)
    copies = said.get("weight_copies")
    return Terms(demands=demands) if copies is None else Terms(copies.value, copies.mark, demands)


def _choice(node: Node | None) -> Choice | None:
    return None if node is None else Choice(node.value, node.mark)


def _denials(merged: Merged) -> Iterator[Denial]:
    errata = merged.root.at("errata")
    for row in errata.items() if errata else ():
        yield _denial(row, "deny", "erratum", _value(row, "when", "platform"), _below(row, "when"))
    for row in merged.disables.values():
        scheme = row.at("scheme")
        only = () if scheme is None else (OneOf("when.schemes", (scheme.value,), scheme.mark),)
        yield _denial(row, "kernel", "disable", _value(row, "platform"), only)


def _denial(row: Node, key: str, source: str, platform: str | None, when: tuple[Predicate, ...]) -> Denial:
    return Denial(
        kernel=_value(row, key),
        source=source,
        platform=platform,
        predicates=when,
        reason=_value(row, "reason"),
        link=_value(row, "link"),
        until=_value(row, "until"),
        mark=row.value[key].mark,
        models=_texts(row, "when", "models"),
    )


def _marks(merged: Merged) -> dict[Path, Mark]:
    """The place of every value, by its path in the table as it is after all overrides."""
    marks = {path: node.mark for path, node in walk(merged.root)}
    for verb, chosen in (("require", merged.require), ("prefer", merged.prefer)):
        marks.update({("routes", *key, verb): node.mark for key, node in chosen.items()})
    for key, plans in merged.plans.items():
        marks.update({("routes", *key, "plans", *path): node.mark for path, node in walk(plans)})
    for place, row in enumerate(merged.disables.values()):
        marks.update({("disable", place, *path): node.mark for path, node in walk(row)})
    return marks
