"""Laying one mapping over another: maps merge by key, anything else replaces, and every value keeps its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kerneltable.model import Mark
from kerneltable.table.node import Node

RouteKey = tuple[str, str]


@dataclass(slots=True)
class Merged:
    """The table while overrides are laid over it.

    root      the table's sections; `routes` already holds the changed orders
    require, prefer   the kernels that deployments named, by (scheme, platform); a route has one of both at most
    plans     what deployments said about the plans of one route, by (scheme, platform)
    disables  the `disable` rows in force, by (kernel, platform, scheme)
    listed    every kernel that a route of the table lists, before overrides
    removed   kernels that an override took out of a route, each with the place that did it
    touched   sections that were changed and need another look at the schema
    """

    root: Node
    require: dict[RouteKey, Node] = field(default_factory=dict)
    prefer: dict[RouteKey, Node] = field(default_factory=dict)
    plans: dict[RouteKey, Node] = field(default_factory=dict)
    disables: dict[tuple[str, str | None, str | None], Node] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()
    removed: dict[tuple[RouteKey, str], Mark] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    allow_empty: bool = False

    def steps(self, key: RouteKey) -> tuple[Node, ...]:
        """The steps of a route, none when there is no such route."""
        route = self.root.at("routes", *key)
        return () if route is None else route.items()

    def put(self, path: tuple[str, ...], node: Node, key_mark: Mark) -> None:
        """Set the value at a path; mappings on the way are made when they are missing."""
        self.root = with_entry(self.root, path, node, key_mark)


def with_entry(root: Node, path: tuple[str, ...], node: Node, key_mark: Mark) -> Node:
    """The mapping `root` with one value replaced or added below it."""
    name, rest = path[0], path[1:]
    if rest:
        below = root.at(name) or Node({}, key_mark)
        node = with_entry(below, rest, node, key_mark)
        key_mark = root.keys.get(name, key_mark)
    return replace(root, value={**root.entries(), name: node}, keys={**root.keys, name: key_mark})


def without(node: Node, names: tuple[str, ...]) -> Node:
    """A mapping without some of its keys."""
    return replace(
        node,
        value={name: child for name, child in node.entries().items() if name not in names},
        keys={name: mark for name, mark in node.keys.items() if name not in names},
    )


def overlay(below: Node | None, above: Node) -> Node:
    """`above` laid over `below`: mappings merge key by key, anything else replaces."""
    if below is None or not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    value = dict(below.value)
    keys: dict[str, Mark] = dict(below.keys)
    for name, child in above.value.items():
        value[name] = overlay(value.get(name), child)
        keys[name] = keys.get(name) or above.keys[name]
    return replace(below, value=value, keys=keys)


def kernel_of(step: Node) -> str | None:
    """The kernel that a step of a route names."""
    inner = step.at("kernel")
    return step.text() if inner is None else inner.text()


def kernel_node(step: Node) -> Node:
    """The node that holds the kernel's name in a step."""
    return step.at("kernel") or step


def all_routes(root: Node) -> Mapping[RouteKey, Node]:
    """Every route of a table by (scheme, platform)."""
    routes = root.at("routes")
    found: dict[RouteKey, Node] = {}
    for scheme, platforms in (routes.entries() if routes else {}).items():
        for platform, steps in platforms.entries().items():
            found[scheme, platform] = steps
    return found


def listed_kernels(root: Node) -> frozenset[str]:
    """Every kernel that some route names."""
    names = (kernel_of(step) for steps in all_routes(root).values() for step in steps.items())
    return frozenset(name for name in names if name is not None)
