"""One override laid over the table: what it expects, the sections it merges, what it switches off.

Orders change by verbs alone (ordering.py). A name that does not exist is an error with the nearest one; a change
that changes nothing is a warning. Each value keeps the place of the file that set it.
"""

from __future__ import annotations

from kerneltable.model import Mark
from kerneltable.table.merge import Merged, kernel_node, kernel_of, overlay, without
from kerneltable.table.narrowing import changes, widens
from kerneltable.table.node import Node
from kerneltable.table.ordering import apply_order
from kerneltable.table.override_chips import checked_families
from kerneltable.table.report import Report, dotted, nearest, shown


def apply_override(merged: Merged, override: Node, report: Report) -> None:
    """Lay one override, whose schema was checked, over the table; `merged` changes in place."""
    if not override.entries():
        report.add("KT405", "the override changes nothing", override.mark, help="add a change, or drop the file")
        return
    if not _as_expected(merged, override, report):
        return
    truth = override.at("allow_empty")
    merged.allow_empty = merged.allow_empty or (truth is not None and truth.value is True)
    for section in ("platforms", "schemes", "plans"):
        _merge_section(merged, override, section, report)
    _merge_kernels(merged, override, report)
    routes = override.at("routes")
    for scheme, platforms in (routes.entries() if routes else {}).items():
        for platform, change in platforms.entries().items():
            if _route_known(merged, override, (scheme, platform), report):
                _change_route(merged, (scheme, platform), change, report)
    disable = override.at("disable")
    for place, row in enumerate(disable.items() if disable else ()):
        _disable(merged, row, place, report)
    if not set(override.entries()) - {"$schema", "override", "expects", "allow_empty"}:
        report.add("KT405", "the override changes nothing", override.mark, help="add a change, or drop the file")


def names(merged: Merged, section: str) -> list[str]:
    """The names that a section defines."""
    node = merged.root.at(section)
    return list(node.entries()) if node else []


def _as_expected(merged: Merged, override: Node, report: Report) -> bool:
    """False when the table is not the one the override was written against."""
    good = True
    version, wanted = merged.root.at("table"), override.at("expects", "table")
    if wanted is not None and version is not None and wanted.value != version.value:
        message = f"expects: written for table version {wanted.value}; this table has version {version.value}"
        _say(report, "KT406", message, wanted, "look at what changed in the table, then correct `expects`")
        good = False
    heads = override.at("expects", "order_head")
    for route, node in (heads.entries() if heads else {}).items():
        scheme, _, platform = route.partition("/")
        steps = merged.steps((scheme, platform))
        first = kernel_of(steps[0]) if steps else "nothing"
        if first != node.value:
            message = f"expects: {shown(node.value)} first in {route}; it is {first}"
            _say(report, "KT406", message, node, "look at what changed in the table, then correct `expects`")
            good = False
    return good


def _say(report: Report, code: str, message: str, node: Node, help: str) -> None:
    report.add(code, message, node.mark, length=node.length, help=help)


def _merge_section(merged: Merged, override: Node, section: str, report: Report) -> None:
    patch = override.at(section)
    if patch is None:
        return
    merged.touched.add(section)
    before = merged.root.at(section)
    if section == "platforms":
        patch = checked_families(before, patch, report)
    for path, old, new in changes(before, patch, (section,)):
        if old is not None and (old.plain() == new.plain() or new.plain() == {}):
            _unchanged(report, dotted(path), new, old.mark)
    merged.put((section,), overlay(before, patch), override.keys[section])


def _unchanged(report: Report, what: str, node: Node, where: Mark) -> None:
    _say(report, "KT405", f"{what} is so already ({where})", node, "take it out")


def _merge_kernels(merged: Merged, override: Node, report: Report) -> None:
    section = override.at("kernels")
    if section is None:
        return
    known = names(merged, "kernels")
    for name, patch in section.entries().items():
        mark = section.keys[name]
        row = merged.root.at("kernels", name)
        if row is None and "summary" not in patch.entries():
            help = nearest(name, known) + "; a new kernel needs a complete row, with `summary`"
            report.add("KT301", f"unknown kernel {shown(name)}", mark, length=len(name), help=help)
            continue
        if row is not None:
            _check_narrower(name, row, patch, report)
        merged.put(("kernels", name), overlay(_without_proof(row, patch), without(patch, ("unsafe", "reason"))), mark)
        merged.touched.add("kernels")


def _without_proof(row: Node | None, patch: Node) -> Node | None:
    """The row below a patch; one that takes back `status: verified` takes the devices of that status along."""
    status = patch.at("status")
    return row if row is None or status is None or status.value == "verified" else without(row, ("verified",))


def _check_narrower(name: str, row: Node, patch: Node, report: Report) -> None:
    """A row may claim less for free; more only with `unsafe: true`."""
    unsafe = patch.at("unsafe")
    allowed = unsafe is not None and unsafe.value is True
    rest = without(patch, ("unsafe", "reason"))
    if not rest.entries():
        message = f"kernel {shown(name)}: nothing of the row is changed"
        _say(report, "KT405", message, patch, "add the change that this is for, or take it out")
    for path, before, after in changes(row, rest) if rest.entries() else ():
        if (before is not None and after.plain() == {}) or (before is not None and before.plain() == after.plain()):
            _unchanged(report, f"kernel {shown(name)}: {dotted(path)}", after, before.mark)
        elif not allowed and widens(path, before, after, row):
            was = f"the table says {_value(before)} ({before.mark})" if before else "the table does not have it"
            message = f"kernel {shown(name)}: {dotted(path)}: {_value(after)} claims more; {was}"
            help = "if that is right, add `unsafe: true` and a `reason` to this row"
            report.add("KT404", message, after.mark, path=("kernels", name, *path), length=after.length, help=help)


def _value(node: Node) -> str:
    plain = node.plain()
    text = str(plain).lower() if isinstance(plain, bool) else str(plain).replace("'", "")
    return text if len(text) <= 60 else text[:57] + "..."


def _route_known(merged: Merged, override: Node, key: tuple[str, str], report: Report) -> bool:
    scheme, platform = key
    routes = override.at("routes")
    within = override.at("routes", scheme)
    schemes, platforms = names(merged, "schemes"), names(merged, "platforms")
    if scheme not in schemes and routes is not None:
        mark = routes.keys[scheme]
        report.add("KT302", f"unknown scheme {shown(scheme)}", mark, length=len(scheme), help=nearest(scheme, schemes))
    if platform not in platforms and within is not None:
        mark, help = within.keys[platform], nearest(platform, platforms)
        report.add("KT303", f"unknown platform {shown(platform)}", mark, length=len(platform), help=help)
    return scheme in schemes and platform in platforms


def _change_route(merged: Merged, key: tuple[str, str], change: Node, report: Report) -> None:
    order = change.at("order")
    if order is not None:
        apply_order(merged, key, order, report)
    if change.at("require") is not None and change.at("prefer") is not None:
        message = f"route {shown('/'.join(key))}: `require` and `prefer` cannot both be given"
        report.add("KT407", message, change.keys["prefer"], length=6, help="keep one of them")
    _choose(merged, key, change, report)
    plans = change.at("plans")
    if plans is not None:
        _change_plans(merged, key, plans, report)


def _choose(merged: Merged, key: tuple[str, str], change: Node, report: Report) -> None:
    """Note the kernel that a route requires or prefers; a later choice of either verb replaces the earlier one."""
    known = names(merged, "kernels")
    for verb, chosen, other in (
        ("require", merged.require, merged.prefer), ("prefer", merged.prefer, merged.require),
    ):  # fmt: skip
        node = change.at(verb)
        if node is None:
            continue
        if node.value not in known:
            _say(report, "KT301", f"unknown kernel {shown(node.value)}", node, nearest(node.value, known))
            continue
        if key in chosen and chosen[key].value == node.value:
            _unchanged(report, f"{verb}: {node.value}", node, chosen[key].mark)
        chosen[key] = node
        other.pop(key, None)


def _change_plans(merged: Merged, key: tuple[str, str], plans: Node, report: Report) -> None:
    """Lay what one route's plans keep to over what was said of them before."""
    before = merged.plans.get(key)
    for path, old, new in changes(before, plans, ("routes", *key, "plans")):
        if old is not None and old.plain() == new.plain():
            _unchanged(report, dotted(path), new, old.mark)
    merged.plans[key] = overlay(before, plans)


def _disable(merged: Merged, row: Node, place: int, report: Report) -> None:
    """Note one `disable` row; a later row for the same kernel, platform and scheme replaces the earlier one."""
    parts: list[str | None] = []
    for field, code, section in (
        ("kernel", "KT301", "kernels"), ("platform", "KT303", "platforms"), ("scheme", "KT302", "schemes"),
    ):  # fmt: skip
        node = row.at(field)
        parts.append(None if node is None else node.text())
        known = names(merged, section)
        if node is not None and node.value not in known:
            message = f"disable[{place}]: unknown {field} {shown(node.value)}"
            _say(report, code, message, node, nearest(str(node.value), known))
            return
    kernel, platform, scheme = parts
    node = kernel_node(row)
    earlier = merged.disables.get((str(kernel), platform, scheme))
    if earlier is not None:
        _unchanged(report, f"disable: {kernel}", node, earlier.mark)
    merged.disables[str(kernel), platform, scheme] = row
    if not _listed(merged, kernel, platform, scheme):
        message = f"disable: {kernel} is in no route that this row speaks of"
        _say(report, "KT405", message, node, "take the row out")


def _listed(merged: Merged, kernel: str | None, platform: str | None, scheme: str | None) -> bool:
    routes = merged.root.at("routes")
    for name, platforms in (routes.entries() if routes else {}).items():
        for stack, steps in platforms.entries().items():
            matches = scheme in (None, name) and platform in (None, stack)
            if matches and any(kernel_of(step) == kernel for step in steps.items()):
                return True
    return False
