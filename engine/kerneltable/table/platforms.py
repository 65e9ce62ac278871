"""The chips: what `like`, `adds` and `removes` come to, and the checks of their descriptions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kerneltable.model import Capability
from kerneltable.table.names import (
    Names,
    beside,
    capability_of,
    check_capabilities,
    entries,
    items,
    latest,
    look_up,
    say,
)
from kerneltable.table.node import Node
from kerneltable.table.report import Path, Report, nearest, shown

CAPABLE = "cuda"
"""The only platform whose chips have a numbered compute capability."""


def named_capability(name: str) -> Capability | None:
    """The capability in an architecture's name: sm121 -> (12, 1), sm90 -> (9, 0); None in any other name."""
    found = re.fullmatch(r"sm([1-9][0-9]?)([0-9])", name)
    return (int(found[1]), int(found[2])) if found else None


def lineage(architectures: Mapping[str, Node], name: str) -> list[str]:
    """The architecture and those it copies, nearest first; stops before a name seen already or unknown."""
    chain: list[str] = []
    current: str | None = name
    while current is not None and current in architectures and current not in chain:
        chain.append(current)
        parent = architectures[current].at("like")
        current = None if parent is None else parent.text()
    return chain


def features_of(architectures: Mapping[str, Node], name: str) -> frozenset[str]:
    """The features of an architecture after `like`, `adds` and `removes`."""
    features: set[str] = set()
    for link in reversed(lineage(architectures, name)):
        node = architectures[link]
        features |= {text for key in ("features", "adds") for text, _ in items(node, key)}
        features -= {text for text, _ in items(node, "removes")}
    return frozenset(features)


def inherited(architectures: Mapping[str, Node], name: str, key: str) -> Node | None:
    """The value of a key in the architecture, or in the nearest one it copies that has it."""
    for link in lineage(architectures, name):
        node = architectures[link].at(key)
        if node is not None:
            return node
    return None


def resolved_capability(architectures: Mapping[str, Node], name: str) -> Capability | None:
    """The capability written down, else read off the name, else that of the architecture copied."""
    for link in lineage(architectures, name):
        found = capability_of(architectures[link].at("capability")) or named_capability(link)
        if found is not None:
            return found
    return None


def check_platforms(root: Node, names: Names, report: Report) -> None:
    """Copies, capabilities, families and device names of every platform."""
    owners: dict[str, str] = {}
    for platform, node in names.platforms.items():
        base: Path = ("platforms", platform)
        architectures = entries(node, "architectures")
        seen: dict[Capability, str] = {}
        for name in architectures:
            _check_like(architectures, name, (*base, "architectures", name), report)
            _check_features(architectures, name, (*base, "architectures", name), report)
            _check_capability(architectures, name, (*base, "architectures", name), seen, report)
        for name, family in entries(node, "families").items():
            check_capabilities(report, family, (*base, "families", name))
            if platform != CAPABLE:
                _no_capability(report, family, (*base, "families", name))
        for name, device in entries(node, "devices").items():
            look_up(report, "KT304", "architecture", device, architectures, (*base, "devices", name))
        _check_owners(node, platform, owners, report)
        _check_asked(root, platform, architectures, report)


def _check_like(architectures: Mapping[str, Node], name: str, path: Path, report: Report) -> None:
    parent = architectures[name].at("like")
    others = [other for other in architectures if name not in lineage(architectures, other)]
    known = architectures if parent is not None and parent.text() in architectures else others  # a copy is no advice
    if parent is None or not look_up(report, "KT304", "architecture", parent, known, (*path, "like")):
        return
    chain = lineage(architectures, name)
    last = architectures[chain[-1]].at("like")
    if last is not None and last.text() == name:
        message = f"{' is like '.join([*chain, name])}: a circle"
        say(report, "KT308", message, parent, (*path, "like"), "write the features of one of them out")


def _check_features(architectures: Mapping[str, Node], name: str, path: Path, report: Report) -> None:
    parent = architectures[name].at("like")
    if parent is None or parent.text() not in architectures or parent.text() == name:
        return
    before = features_of(architectures, parent.value)
    chain = [architectures[link] for link in lineage(architectures, name)]
    causes = [link.at("like") for link in chain]
    causes += [node for link in chain[1:] for key in ("features", "adds", "removes") for _, node in items(link, key)]
    for feature, node in items(architectures[name], "adds"):
        if feature in before:
            place = latest(report, node, *causes)
            message = f"adds {shown(feature)}{beside(node, place)}, which {parent.value} has"
            help = (
                "take it out" if place is node else "change this line, which decides what is copied, or the other one"
            )
            say(report, "KT310", message, place, (*path, "adds"), help)
    for feature, node in items(architectures[name], "removes"):
        if feature not in before:
            place = latest(report, node, *causes)
            message = f"removes {shown(feature)}{beside(node, place)}, which {parent.value} does not have"
            say(report, "KT310", message, place, (*path, "removes"), f"it has {', '.join(sorted(before))}")


def _check_capability(
    architectures: Mapping[str, Node], name: str, path: Path, seen: dict[Capability, str], report: Report
) -> None:
    node = architectures[name]
    written = node.at("capability")
    if path[1] != CAPABLE:
        _only_there(architectures[name], path, report)
        return
    given, named = capability_of(written), named_capability(name)
    if written is not None and given is not None and named not in (None, given):
        message = f"the capability {written.value} is not that of the name"
        help = f'{name} means "{named[0]}.{named[1]}"' if named else ""
        say(report, "KT309", message, written, (*path, "capability"), help)
        return
    found = resolved_capability(architectures, name)
    if found is None:
        help = 'add `capability: "9.0"`, or use a name like sm90'
        say(report, "KT309", "the name does not say its capability", node, path, help)
    elif found in seen:
        message = f"has the capability of {seen[found]}, so that a device could be either"
        say(report, "KT331", message, node, path, "keep one of them, or give the other its own capability")
    else:
        seen[found] = name
        _check_target(architectures, name, path, report)


def _check_target(architectures: Mapping[str, Node], name: str, path: Path, report: Report) -> None:
    """Code for the target runs on the chip: an error where the target is written, a warning where it is copied."""
    target, found = inherited(architectures, name, "target"), resolved_capability(architectures, name)
    text = None if target is None else target.text()
    if target is None or text is None or found is None or runs_code(found, text):
        return
    own = architectures[name].at("target")
    chip = f"capability {found[0]}.{found[1]}"
    help = f"write what the chip runs, for example target: sm_{found[0]}{found[1]}"
    if own is not None:
        say(report, "KT309", f"code for {text} does not run on {chip}", own, (*path, "target"), help)
        return
    place = latest(report, architectures[name], target)
    message = f"copies target {text}, and code for it does not run on {chip}"
    say(report, "KT333", f"{message}{beside(target, place)}", place, (*path, "target"), help)


def runs_code(chip: Capability, target: str) -> bool:
    """Whether code for a target runs on a chip: sm_90a on 9.0 alone, sm_120f and sm_80 on their major from there on."""
    parts = re.fullmatch(r"sm_([1-9][0-9]?)([0-9])([af]?)", target)
    if parts is None:
        return True  # the schema speaks of the form
    made = (int(parts[1]), int(parts[2]))
    return chip == made if parts[3] == "a" else chip[0] == made[0] and chip >= made


def _only_there(architecture: Node, path: Path, report: Report) -> None:
    """What only chips of CUDA have, found on another platform."""
    written, target = architecture.at("capability"), architecture.at("target")
    if written is not None:
        _no_capability(report, written, (*path, "capability"))
    if target is not None:
        message = f"{path[1]} has no compile target"
        say(report, "KT309", message, target, (*path, "target"), "take it out; only code of cuda is compiled by target")


def _no_capability(report: Report, node: Node, path: Path) -> None:
    message = f"{path[1]} has no compute capability"
    say(report, "KT309", message, node, path, "name features or architectures; only cuda counts capabilities")


def _check_owners(platform: Node, name: str, owners: dict[str, str], report: Report) -> None:
    """A device or architecture name means one thing on all platforms together."""
    mine: set[str] = set()
    for section in ("architectures", "devices"):
        node = platform.at(section)
        for entry in node.entries() if node is not None else ():
            if entry in owners and node is not None:
                message = f"{shown(entry)} is a name of platform {shown(owners[entry])} already"
                report.add(
                    "KT332", f"platform {shown(name)}: {message}", node.keys[entry],
                    path=("platforms", name, section, entry), length=len(entry), help="give it another name",
                )  # fmt: skip
            mine.add(entry)
    _check_devices(platform, name, report)
    owners.update({entry: name for entry in mine if entry not in owners})


def _check_devices(platform: Node, name: str, report: Report) -> None:
    """A device that has an architecture's name would never be found: the name means the architecture."""
    architectures, devices = platform.at("architectures"), platform.at("devices")
    for entry, node in devices.entries().items() if devices is not None and architectures is not None else ():
        if devices is None or architectures is None or entry not in architectures.keys or node.value == entry:
            continue
        mark = max((devices.keys[entry], architectures.keys[entry]), key=report.rank)
        other = architectures.keys[entry] if mark is devices.keys[entry] else devices.keys[entry]
        message = f"{shown(entry)} is an architecture and a device of {shown(node.value)}; the other one is at {other}"
        report.add(
            "KT332", f"platform {shown(name)}: {message}", mark,
            path=("platforms", name, "devices", entry), length=len(entry), help="give the device another name",
        )  # fmt: skip


def _check_asked(root: Node, platform: str, architectures: Mapping[str, Node], report: Report) -> None:
    """A feature that an override brings and that no row and no chip of the table knows is a slip."""
    rows = entries(root, "kernels").values()
    asked = {text for row in rows for text, _ in items(row, "runs_on", platform, "features")}
    given = [
        (text, node, name, key)
        for name, architecture in architectures.items()
        for key in ("features", "adds")
        for text, node in items(architecture, key)
    ]
    known = asked | {text for text, node, _, _ in given if report.rank(node.mark) <= 0}
    for text, node, name, key in given:
        if text not in known and not report.failed:
            path: Path = ("platforms", platform, "architectures", name, key)
            message = f"no row asks for {shown(text)}, and no other chip has it"
            say(report, "KT334", message, node, path, nearest(text, known))
