"""The order verbs: replace alone, or remove, prepend, append, before, after, always in this sequence.

A step that is put somewhere moves when the route has it already: the one with the same `when`, or the one without. The
other steps of its kernel stay; what this does to their conditions is said in a note (placing.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kerneltable.table.merge import Merged, RouteKey, kernel_node, kernel_of
from kerneltable.table.node import Node
from kerneltable.table.placing import Placing, condition_of
from kerneltable.table.report import Report, nearest, shown

Steps = tuple[Node, ...]


def apply_order(merged: Merged, key: RouteKey, order: Node, report: Report) -> None:
    """Apply the verbs of one `order` to a route; `merged` changes in place."""
    before, noted = merged.steps(key), len(report.findings)
    if not _consistent(merged, key, order, report):
        return
    whole, placing = order.at("replace"), Placing(key, before)
    steps = whole.items() if whole is not None else _apply_verbs(merged, order, placing, report)
    _note_removed(merged, key, order, (before, steps))
    if len(report.findings) == noted and [s.plain() for s in steps] == [s.plain() for s in before]:
        message = f"route {shown('/'.join(key))}: the order is so already"
        report.add("KT405", message, order.mark, path=("routes", *key, "order"), help="take it out")
    else:
        for message, node, help in placing.notes:
            report.add("KT412", message, node.mark, path=("routes", *key, "order"), length=node.length, help=help)
    if not steps and not merged.allow_empty:
        message = f"route {shown('/'.join(key))}: no kernel is left"
        help = "leave one, or add `allow_empty: true` to this file"
        report.add("KT408", message, order.mark, path=("routes", *key, "order"), help=help)
    place = merged.root.at("routes", *key)
    route = Node(steps, order.mark) if place is None or whole is not None else replace(place, value=steps)
    merged.put(("routes", *key), route, order.mark)


def _kernels(steps: Steps) -> set[str]:
    return {name for step in steps if (name := kernel_of(step)) is not None}


def _note_removed(merged: Merged, key: RouteKey, order: Node, steps: tuple[Steps, Steps]) -> None:
    """Which kernels the route has no longer, each with the place that took it out; those that are back are not."""
    before, after = map(_kernels, steps)
    removed = {node.value: node.mark for verb, _, named in _verbs(order) for node in named if verb == "remove"}
    whole = order.at("replace") or order
    merged.removed |= {(key, name): removed.get(name, whole.mark) for name in sorted(before - after)}
    merged.removed = {
        (route, name): m for (route, name), m in merged.removed.items() if route != key or name not in after
    }


def _verbs(order: Node) -> Iterator[tuple[str, Node | None, Steps]]:
    """Every verb with its anchor, if it has one, and its kernels."""
    for verb in ("replace", "remove", "prepend", "append"):
        node = order.at(verb)
        if node is not None:
            yield verb, None, node.items()
    for verb in ("before", "after"):
        node = order.at(verb)
        for anchor, steps in (node.entries() if node else {}).items():
            mark = node.keys[anchor] if node else order.mark
            yield verb, Node(anchor, mark, len(anchor), anchor), steps.items()


def _consistent(merged: Merged, key: RouteKey, order: Node, report: Report) -> bool:
    """Every kernel exists, and every step stands in one verb alone."""
    section = merged.root.at("kernels")
    known = list(section.entries()) if section else []
    seen: dict[str, list[tuple[str, Node]]] = {}
    good = True
    for verb, anchor, steps in _verbs(order):
        for node in ([anchor] if anchor else []) + [kernel_node(step) for step in steps]:
            if node.value not in known:
                message = f"route {shown('/'.join(key))}: {verb}: unknown kernel {shown(node.value)}"
                _say(report, "KT301", message, node, nearest(str(node.value), known))
                good = False
        for step in steps if verb != "replace" else ():
            name, node = str(kernel_of(step)), kernel_node(step)
            first = next((one for one in seen.get(name, ()) if _undoes(one, (verb, step))), None)
            if first is not None and name in known:
                message = f"route {shown('/'.join(key))}: {name} stands in two places of this order"
                _say(report, "KT409", message, node, f"keep one of them; the first is at {first[1].mark}")
                good = False
            seen.setdefault(name, []).append((verb, step))
        if anchor is not None and anchor.value in (kernel_of(step) for step in steps):
            message = f"route {shown('/'.join(key))}: {anchor.value} cannot stand {verb} itself"
            _say(report, "KT409", message, anchor, "name another kernel")
            good = False
    return good


def _undoes(one: tuple[str, Node], other: tuple[str, Node]) -> bool:
    """Whether of two places of a kernel in one order only one can count: steps with different `when` are two bands."""
    return "remove" in (one[0], other[0]) or condition_of(one[1]) == condition_of(other[1])


def _say(report: Report, code: str, message: str, node: Node, help: str) -> None:
    report.add(code, message, node.mark, length=node.length, help=help)


def _apply_verbs(merged: Merged, order: Node, placing: Placing, report: Report) -> Steps:
    for verb, anchor, moved in _verbs(order):
        if verb == "remove":
            for node in moved:
                _check_listed(merged, placing.key, node, placing.steps, report)
            names = {kernel_of(step) for step in moved}
            placing.steps = tuple(step for step in placing.steps if kernel_of(step) not in names)
        elif anchor is not None and anchor.value not in _kernels(placing.steps):
            _not_listed(placing.key, anchor, placing.steps, report)
        else:
            placing.put(moved, verb, None if anchor is None else anchor.text())
    return placing.steps


def _check_listed(merged: Merged, key: RouteKey, node: Node, steps: Steps, report: Report) -> None:
    """A kernel to remove must be there; one that an earlier override took out is a mere warning."""
    if node.value in _kernels(steps):
        return
    if (key, node.value) in merged.removed:
        message = f"route {shown('/'.join(key))}: {node.value} was taken out by an earlier override"
        _say(report, "KT405", message, node, "take it out of this list")
        return
    _not_listed(key, node, steps, report)


def _not_listed(key: RouteKey, node: Node, steps: Steps, report: Report) -> None:
    message = f"{node.value} is not in route {shown('/'.join(key))}"
    _say(report, "KT403", message, node, nearest(str(node.value), _kernels(steps)))
