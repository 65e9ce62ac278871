"""Putting steps somewhere in a route: which steps move, which stay, and what becomes of their conditions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kerneltable.table.merge import RouteKey, kernel_node, kernel_of
from kerneltable.table.node import Node
from kerneltable.table.origin_text import said
from kerneltable.table.report import shown

Steps = tuple[Node, ...]
_WHOLE = "to change conditions, write the whole order with `replace`"


@dataclass(slots=True)
class Placing:
    """One route while the verbs of one order change it.

    steps    as they are now
    placed   the steps that this order put there
    notes    what becomes of conditions: message, the place in the order, next step
    """

    key: RouteKey
    steps: Steps
    placed: list[Node] = field(default_factory=list)
    notes: list[tuple[str, Node, str]] = field(default_factory=list)

    def put(self, given: Steps, verb: str, anchor: str | None) -> None:
        """Put steps where a verb says; anchor is a kernel of the route for `before` and `after`, else None."""
        put: list[Node] = []
        leaving: list[Node] = []
        for step in given:
            landing, moved = self._landing(step)
            put += landing
            leaving += moved
        kept = tuple(step for step in self.steps if not _among(step, leaving))
        at = {"prepend": 0, "append": len(kept)}.get(verb)
        if at is None:
            places = [place for place, step in enumerate(kept) if kernel_of(step) == anchor]
            at = places[0] if verb == "before" else places[-1] + 1
        self.placed += put
        self.steps = (*kept[:at], *put, *kept[at:])
        for step in given:
            self._leave_out(step)

    def _landing(self, step: Node) -> tuple[Steps, Steps]:
        """What one step of the order puts into the route, and the steps of the route that move for it."""
        others = tuple(s for s in self.steps if kernel_of(s) == kernel_of(step) and not _among(s, self.placed))
        same = tuple(other for other in others if condition_of(other) == condition_of(step))
        limited = tuple(other for other in others if condition_of(other) is not None and not _among(other, same))
        if condition_of(step) is not None:
            if limited:
                self._note(step, f"a step of {kernel_of(step)} is added; its others keep their conditions", limited)
            return (step,), same
        if same or not others:
            return (step,), same
        self._note(step, f"{kernel_of(step)} moves with its conditions", others)
        name = kernel_node(step)
        moved = tuple(replace(o, value={**o.entries(), "kernel": name}, mark=step.mark) for o in others)
        return moved, others

    def _leave_out(self, step: Node) -> None:
        """Take out what a step without a condition hides: the steps of its kernel behind it."""
        place = next((i for i, other in enumerate(self.steps) if other is step), None)
        if place is None or condition_of(step) is not None:
            return
        behind = self.steps[place + 1 :]
        hidden = tuple(s for s in behind if kernel_of(s) == kernel_of(step) and not _among(s, self.placed))
        if hidden:
            said = f"{kernel_of(step)} stands here without a condition, so what it hides is left out"
            self._note(step, said, hidden)
            self.steps = tuple(other for other in self.steps if not _among(other, hidden))

    def _note(self, step: Node, what: str, steps: Steps) -> None:
        lines = ", ".join(f"{said(other)} ({other.mark})" for other in steps)
        self.notes.append((f"route {shown('/'.join(self.key))}: {what}: {lines}", kernel_node(step), _WHOLE))


def condition_of(step: Node) -> Any:
    """The `when` of a step as plain values, None for a step without one."""
    when = step.at("when")
    return None if when is None else when.plain()


def _among(step: Node, steps: list[Node] | Steps) -> bool:
    """Whether it is one of these very steps, and not merely one that is written alike."""
    return any(step is other for other in steps)
