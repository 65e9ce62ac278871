"""The names that a table defines, and the one way to say that a name is not among them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from kerneltable.model import Capability
from kerneltable.table.node import Node
from kerneltable.table.report import Path, Report, nearest, shown
from kerneltable.table.specs import capability
from kerneltable.table.wording import subject

_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9][0-9]?")
Signatures = Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class Names:
    """What the checks look names up in. architectures, families and features are by platform."""

    kernels: Mapping[str, Node]
    schemes: Mapping[str, Node]
    platforms: Mapping[str, Node]
    architectures: Mapping[str, frozenset[str]]
    families: Mapping[str, frozenset[str]]
    features: Mapping[str, frozenset[str]]
    devices: frozenset[str]


def collect_names(root: Node) -> Names:
    """Every name of a table; a section that is missing or of a wrong type defines none."""
    platforms = entries(root, "platforms")
    return Names(
        entries(root, "kernels"),
        entries(root, "schemes"),
        platforms,
        {name: frozenset(entries(node, "architectures")) for name, node in platforms.items()},
        {name: frozenset(entries(node, "families")) for name, node in platforms.items()},
        {name: frozenset(_features(node)) for name, node in platforms.items()},
        frozenset(device for node in platforms.values() for device in entries(node, "devices")),
    )


def entries(node: Node, *path: str) -> Mapping[str, Node]:
    """The entries of the mapping at a path, none when there is no mapping."""
    found = node.at(*path)
    return {} if found is None else found.entries()


def items(node: Node, *path: str) -> list[tuple[str, Node]]:
    """The texts of the list at a path, each with its node."""
    found = node.at(*path)
    return [] if found is None else found.names()


def _features(platform: Node) -> Iterator[str]:
    for architecture in entries(platform, "architectures").values():
        for key in ("features", "adds"):
            yield from (name for name, _ in items(architecture, key))


def say(report: Report, code: str, message: str, node: Node, path: Path, help: str = "") -> None:
    """One finding at a value; the message starts with the row or route that it is about."""
    report.add(code, f"{subject(path)}: {message}", node.mark, path=path, length=node.length, help=help)


def latest(report: Report, node: Node, *others: Node | None) -> Node:
    """Of values that contradict each other, the one of the latest layer; the first when one layer set them all."""
    return max((one for one in (node, *others) if one is not None), key=lambda one: report.rank(one.mark))


def beside(node: Node, place: Node) -> str:
    """Where the other value stands when a message points at `place` instead of at `node`."""
    return "" if place is node else f" ({node.mark})"


def look_up(report: Report, code: str, kind: str, node: Node | None, known: Collection[str], path: Path) -> bool:
    """True when the text of node is one of the known names; else a finding with the nearest one."""
    name = None if node is None else node.text()
    if node is None or name is None:
        return False
    if name in known:
        return True
    say(report, code, f"unknown {kind} {shown(name)}", node, path, nearest(name, known))
    return False


def look_up_key(report: Report, code: str, kind: str, name: str, owner: Node, known: Collection[str]) -> bool:
    """The same for a name that is a key of the mapping `owner`."""
    if name in known:
        return True
    help = nearest(name, known)
    report.add(code, f"unknown {kind} {shown(name)}", owner.keys[name], length=len(name), help=help)
    return False


def capability_of(node: Node | None) -> Capability | None:
    """The capability that a node holds, or None when it holds something else."""
    text = None if node is None else node.text()
    return capability(text) if text is not None and _CAPABILITY.fullmatch(text) else None


def number(node: Node | None) -> int | None:
    """The whole number that a node holds, or None."""
    value = None if node is None else node.value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def check_limits(report: Report, node: Node, path: Path) -> None:
    """min and max leave something, and a multiple lies between them."""
    low, high = number(node.at("min")), number(node.at("max"))
    step = number(node.at("multiple_of")) or 1
    top = node.at("max")
    if high is None or top is None:
        return
    low = 1 if low is None else low
    if low > high:
        place = latest(report, top, node.at("min"))
        message = f"nothing is from {low} to {high}{beside(top, place)}"
        say(report, "KT311", message, place, (*path, "max"), "raise max or lower min")
    elif -(-low // step) * step > high:
        place = latest(report, top, node.at("min"), node.at("multiple_of"))
        message = f"no multiple of {step} is from {low} to {high}{beside(top, place)}"
        say(report, "KT312", message, place, (*path, "max"), "raise max, or change multiple_of")


def check_capabilities(report: Report, node: Node, path: Path) -> None:
    """The two ends of a capability range are in order."""
    low, high, top = capability_of(node.at("min")), capability_of(node.at("max")), node.at("max")
    if low is not None and high is not None and top is not None and low > high:
        place = latest(report, top, node.at("min"))
        text = f"nothing is from {low[0]}.{low[1]} to {high[0]}.{high[1]}{beside(top, place)}"
        say(report, "KT311", text, place, (*path, "max"), "raise max or lower min; both ends are included")


def check_until(report: Report, node: Node | None, path: Path) -> None:
    """A day that exists, and that is still to come."""
    day = check_date(report, node, path)
    if day is not None and node is not None and day < report.today:
        message = f"the day {day.isoformat()} has passed"
        say(report, "KT328", message, node, path, "look whether this is still needed; take it out or move the day")


def check_date(report: Report, node: Node | None, path: Path) -> date | None:
    """The day that a node holds; a finding when the calendar has no such day."""
    text = None if node is None else node.text()
    if node is None or text is None or not re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        say(report, "KT327", f"the calendar has no day {text}", node, path, "correct the day")
        return None
