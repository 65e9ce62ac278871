"""The order verbs: replace alone, or remove, prepend, append, before, after, always in this sequence.

A kernel that is put somewhere and is listed already moves: its old steps go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kerneltable.table.merge import Merged, RouteKey, kernel_node, kernel_of
from kerneltable.table.node import Node
from kerneltable.table.report import Report, nearest, shown

Steps = tuple[Node, ...]


def apply_order(merged: Merged, key: RouteKey, order: Node, report: Report) -> None:
    """Apply the verbs of one `order` to a route; `merged` changes in place."""
    before, noted = merged.steps(key), len(report.findings)
    if not _consistent(merged, key, order, report):
        return
    whole = order.at("replace")
    steps = whole.items() if whole is not None else _apply_verbs(merged, key, order, before, report)
    merged.removed |= {(key, name) for name in _kernels(before) - _kernels(steps)}
    merged.removed -= {(key, name) for name in _kernels(steps)}
    if len(report.findings) == noted and [s.plain() for s in steps] == [s.plain() for s in before]:
        message = f"route {shown('/'.join(key))}: the order is so already"
        report.add("KT405", message, order.mark, path=("routes", *key, "order"), help="take it out")
    if not steps and not merged.allow_empty:
        message = f"route {shown('/'.join(key))}: no kernel is left"
        help = "leave one, or add `allow_empty: true` to this file"
        report.add("KT408", message, order.mark, path=("routes", *key, "order"), help=help)
    place = merged.root.at("routes", *key)
    route = Node(steps, order.mark) if place is None or whole is not None else replace(place, value=steps)
    merged.put(("routes", *key), route, order.mark)


def _kernels(steps: Steps) -> set[str]:
    return {name for step in steps if (name := kernel_of(step)) is not None}


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
    """Every kernel exists and stands in one verb alone."""
    section = merged.root.at("kernels")
    known = list(section.entries()) if section else []
    seen: dict[str, Node] = {}
    good = True
    for verb, anchor, steps in _verbs(order):
        for node in ([anchor] if anchor else []) + [kernel_node(step) for step in steps]:
            name = str(node.value)
            if name not in known:
                message = f"route {shown('/'.join(key))}: {verb}: unknown kernel {shown(name)}"
                _say(report, "KT301", message, node, nearest(name, known))
                good = False
            elif node is not anchor and verb != "replace":
                if name in seen:
                    message = f"route {shown('/'.join(key))}: {name} stands in two places of this order"
                    _say(report, "KT409", message, node, f"keep one of them; the first is at {seen[name].mark}")
                    good = False
                seen[name] = node
        if anchor is not None and anchor.value in (kernel_of(step) for step in steps):
            message = f"route {shown('/'.join(key))}: {anchor.value} cannot stand {verb} itself"
            _say(report, "KT409", message, anchor, "name another kernel")
            good = False
    return good


def _say(report: Report, code: str, message: str, node: Node, help: str) -> None:
    report.add(code, message, node.mark, length=node.length, help=help)


def _apply_verbs(merged: Merged, key: RouteKey, order: Node, steps: Steps, report: Report) -> Steps:
    for verb, anchor, moved in _verbs(order):
        names = {kernel_of(step) for step in moved}
        if verb == "remove":
            for node in moved:
                _check_listed(merged, key, node, steps, report)
        kept = tuple(step for step in steps if kernel_of(step) not in names)
        if verb == "remove":
            steps = kept
        elif verb == "prepend":
            steps = (*moved, *kept)
        elif verb == "append":
            steps = (*kept, *moved)
        elif anchor is not None:
            places = [place for place, step in enumerate(kept) if kernel_of(step) == anchor.value]
            if not places:
                _not_listed(key, anchor, steps, report)
                continue
            at = places[0] if verb == "before" else places[-1] + 1
            steps = (*kept[:at], *moved, *kept[at:])
    return steps


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
