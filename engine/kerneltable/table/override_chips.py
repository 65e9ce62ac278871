"""What an override says of chips that the table describes already."""

from __future__ import annotations

from dataclasses import replace

from kerneltable.table.merge import without
from kerneltable.table.narrowing import bound_widens, changes
from kerneltable.table.node import Node
from kerneltable.table.report import Path, Report, shown

_WORDS = ("unsafe", "reason")


def checked_families(before: Node | None, platforms: Node, report: Report) -> Node:
    """The platforms of an override without what only justifies a change of a family.

    A family of the table may reach less far for free; further only with `unsafe: true`: rows that name it follow.
    """
    changed = {}
    for platform, patch in platforms.entries().items():
        families = patch.at("families")
        if families is None:
            changed[platform] = patch
            continue
        plain = {}
        for name, family in families.entries().items():
            plain[name] = without(family, _WORDS)
            known = None if before is None else before.at(platform, "families", name)
            unsafe = family.at("unsafe")
            if known is not None and (unsafe is None or unsafe.value is not True):
                _check_bounds(known, plain[name], ("platforms", platform, "families", name), report)
        changed[platform] = replace(patch, value={**patch.entries(), "families": replace(families, value=plain)})
    return replace(platforms, value=changed)


def _check_bounds(known: Node, family: Node, path: Path, report: Report) -> None:
    for (end,), old, new in changes(known, family) if family.entries() else ():
        if bound_widens(str(end), old, new):
            was = f"the table says {old.value} ({old.mark})" if old is not None else ""
            message = f"platform {shown(path[1])}: families.{path[3]}.{end}: {new.value} reaches further; {was}"
            help = "rows that name the family would run there: if that is right, add `unsafe: true` and a `reason`"
            report.add("KT404", message, new.mark, path=(*path, end), length=new.length, help=help)
