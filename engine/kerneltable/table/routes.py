"""Checks of routes, errata and switched-off kernels, after every override is laid over the table."""

from __future__ import annotations

from kerneltable.table.merge import Merged, kernel_node, kernel_of, listed_kernels
from kerneltable.table.names import Names, check_limits, check_until, items, look_up, look_up_key, say
from kerneltable.table.node import Node
from kerneltable.table.report import Path, Report, listed, shown


def check_routes(merged: Merged, names: Names, report: Report) -> None:
    """Names, order, dead steps and the last step of every route."""
    root = merged.root
    routes = root.at("routes")
    for scheme, platforms in routes.entries().items() if routes else ():
        if routes is None or not look_up_key(report, "KT302", "scheme", scheme, routes, names.schemes):
            continue
        for platform, steps in platforms.entries().items():
            if look_up_key(report, "KT303", "platform", platform, platforms, names.platforms):
                _check_steps(steps, names, (scheme, platform), report)
                _check_last(merged, steps, names, (scheme, platform), report)
                _check_choices(merged, names, (scheme, platform), report)


def check_coverage(merged: Merged, names: Names, report: Report) -> None:
    """Platforms without a route, and kernels in none."""
    root = merged.root
    _check_covered(root, names, report)
    listed = merged.listed | listed_kernels(root)
    section = root.at("kernels")
    for kernel in names.kernels:
        if kernel not in listed and section is not None:
            message = f"kernel {shown(kernel)}: no route lists it, so that nothing can choose it"
            mark = section.keys[kernel]
            report.add("KT315", message, mark, path=("kernels", kernel), length=len(kernel), help="add it to a route")


def _check_steps(steps: Node, names: Names, key: tuple[str, str], report: Report) -> None:
    base: Path = ("routes", *key)
    earlier: dict[str, list[object]] = {}
    for place, step in enumerate(steps.items()):
        kernel, node = kernel_of(step), kernel_node(step)
        path: Path = (*base, place)
        when = step.at("when")
        if when is not None:
            check_condition(when, names, (*path, "when"), report, platform=key[1])
        if kernel is None or not look_up(report, "KT301", "kernel", node, names.kernels, path):
            continue
        condition = None if when is None else when.plain()
        before = earlier.setdefault(kernel, [])
        if None in before or condition in before:
            message = f"{shown(kernel)} stands here a second time and can never be reached"
            say(report, "KT314", message, node, path, "keep one of them, or give the first a `when`")
        else:
            _check_alive(names.kernels[kernel], kernel, node, (key, path), report)
        before.append(condition)


def _check_alive(row: Node, kernel: str, node: Node, where: tuple[tuple[str, str], Path], report: Report) -> None:
    """A step whose row refuses the route's own scheme or platform is a mistake, not a choice."""
    key, path = where
    dead = _why_dead(row, key)
    if dead is not None:
        message = f"{shown(kernel)} can never be chosen: its row {dead[0]}"
        say(report, "KT329", message, node, path, f"see {dead[1].mark}; take the step out")


def _why_dead(row: Node, key: tuple[str, str]) -> tuple[str, Node] | None:
    """What keeps a row out of a route for good, and where it stands; None when nothing does."""
    scheme, platform = key
    schemes, runs_on = row.at("accepts", "schemes"), row.at("runs_on")
    accepted = [] if schemes is None else [item.value for item in schemes.items()]
    if schemes is not None and accepted and scheme not in accepted and None not in accepted:
        return f"does not accept {scheme}", schemes
    if runs_on is not None and runs_on.entries() and platform not in runs_on.entries():
        return f"does not run on {platform}", runs_on
    return None


def _check_last(merged: Merged, steps: Node, names: Names, key: tuple[str, str], report: Report) -> None:
    if not steps.items():
        return
    last = steps.items()[-1]
    row = names.kernels.get(kernel_of(last) or "")
    kind = None if row is None else row.at("kind")
    if (kind is not None and kind.value != "reference") or last.at("when") is not None:
        message, path = f"the last kernel is {shown(kernel_of(last))}", ("routes", *key)
        for (route, name), mark in merged.removed.items():
            kind = names.kernels[name].at("kind")
            if route == key and kind is not None and kind.value == "reference":
                what = f"route {shown('/'.join(key))}: {message} ({last.mark}), since {shown(name)} is taken out here"
                help = f"leave {name} in, or end the route with another last resort"
                report.add("KT317", f"{what}; a layer that it refuses has none", mark, path=path, help=help)
                return
        what = f"{message}; a layer that it refuses has none"
        say(report, "KT317", what, kernel_node(last), path, "end the route with `reference`")


def _check_choices(merged: Merged, names: Names, key: tuple[str, str], report: Report) -> None:
    """A required or preferred kernel stands in its route, and is not switched off."""
    for verb, chosen in (("require", merged.require), ("prefer", merged.prefer)):
        node = chosen.get(key)
        if node is None:
            continue
        path: Path = ("routes", *key, verb)
        here = [kernel_of(step) for step in merged.steps(key)]
        if node.value not in here:
            row = names.kernels.get(node.value)
            dead = None if row is None else _why_dead(row, key)
            help = f"add it: order: {{prepend: [{node.value}]}}"
            if dead is not None:
                help = f"its row {dead[0]} ({dead[1].mark}); the route has {listed(dict.fromkeys(here))}"
            say(report, "KT403", f"{node.value} is not in this route", node, path, help)
        off = _switched_off(merged, node.value, key)
        if off is not None:
            code, what = ("KT410", "required") if verb == "require" else ("KT411", "preferred")
            message = f"{node.value} is {what} here and switched off at {off.mark}"
            say(report, code, message, node, path, "keep one of the two")


def _switched_off(merged: Merged, kernel: str | None, key: tuple[str, str]) -> Node | None:
    scheme, platform = key
    for (name, stack, problem), row in merged.disables.items():
        if name == kernel and stack in (None, platform) and problem in (None, scheme):
            return row
    return None


def _check_covered(root: Node, names: Names, report: Report) -> None:
    """A scheme without a route on a platform has no kernel there: on purpose or not, it is worth a word."""
    section, platforms = root.at("schemes"), root.at("platforms")
    for scheme in names.schemes if section is not None and platforms is not None else ():
        for platform in names.platforms:
            if root.at("routes", scheme, platform) is None and section is not None and platforms is not None:
                message = f"scheme {shown(scheme)}: no route on {platform}"
                new = report.rank(platforms.keys[platform]) > report.rank(section.keys[scheme])
                mark, name = (platforms.keys[platform], platform) if new else (section.keys[scheme], scheme)
                help = _route_to_add(names, (scheme, platform))
                report.add("KT316", message, mark, path=("schemes", scheme), length=len(name), help=help)


def _route_to_add(names: Names, key: tuple[str, str]) -> str:
    """The route that would not be an error in turn: kernels whose rows know the scheme and the platform."""
    fitting = [name for name, row in names.kernels.items() if _why_dead(row, key) is None]
    if fitting:
        return f"add routes.{key[0]}.{key[1]}; rows that run there: {listed(reversed(fitting))}"
    return f"no row runs there: give one `runs_on: {{{key[1]}: ...}}`, then add routes.{key[0]}.{key[1]}"


def check_condition(when: Node, names: Names, path: Path, report: Report, *, platform: str | None = None) -> None:
    """The names and limits of a `when`; platform is where it applies, None for all."""
    for size in ("m", "n", "k"):
        limits = when.at(size)
        if limits is not None:
            check_limits(report, limits, (*path, size))
    for _, item in items(when, "schemes"):
        look_up(report, "KT302", "scheme", item, names.schemes, (*path, "schemes"))
    for key, code, kind, known in (
        ("architectures", "KT304", "architecture", names.architectures),
        ("families", "KT306", "family", names.families),
    ):
        every = [known.get(platform, frozenset())] if platform else list(known.values())
        for _, item in items(when, key):
            look_up(report, code, kind, item, frozenset().union(*every), (*path, key))


def check_denials(merged: Merged, names: Names, report: Report) -> None:
    """Errata and `disable` rows: names, days, and that no route is left empty unasked."""
    errata = merged.root.at("errata")
    for place, row in enumerate(errata.items() if errata else ()):
        path: Path = ("errata", place)
        look_up(report, "KT301", "kernel", row.at("deny"), names.kernels, (*path, "deny"))
        check_until(report, row.at("until"), (*path, "until"))
        when = row.at("when")
        if when is not None:
            stack = when.at("platform")
            good = look_up(report, "KT303", "platform", stack, names.platforms, (*path, "when", "platform"))
            check_condition(when, names, (*path, "when"), report, platform=stack.text() if stack and good else None)
    for place, row in enumerate(merged.disables.values()):
        check_until(report, row.at("until"), ("disable", place, "until"))
    if not merged.allow_empty:
        _check_left(merged, report)


def _check_left(merged: Merged, report: Report) -> None:
    routes = merged.root.at("routes")
    for scheme, platforms in routes.entries().items() if routes else ():
        for platform in platforms.entries():
            off = [_switched_off(merged, kernel_of(s), (scheme, platform)) for s in merged.steps((scheme, platform))]
            if off and all(off):
                row = next(row for row in reversed(off) if row is not None)
                message = f"route {shown(f'{scheme}/{platform}')}: every kernel is switched off"
                help = "leave one, or add `allow_empty: true` to the override"
                report.add("KT408", message, row.mark, path=("routes", scheme, platform), help=help)
