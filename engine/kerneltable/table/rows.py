"""Checks of kernel rows and schemes: names, limits, parameters, and the constructors that will take them."""

from __future__ import annotations

from datetime import timedelta

from kerneltable.formats import ACCUMULATORS
from kerneltable.table.names import (
    Names,
    Signatures,
    capability_of,
    check_capabilities,
    check_date,
    check_limits,
    entries,
    items,
    look_up,
    look_up_key,
    say,
)
from kerneltable.table.node import Node
from kerneltable.table.platforms import CAPABLE
from kerneltable.table.report import Path, Report, listed, nearest, shown
from kerneltable.table.wording import CHIP_KEYS, about_platform


def check_schemes(names: Names, report: Report) -> None:
    """A tensor name, alias or not, means one parameter of its scheme."""
    for scheme, node in names.schemes.items():
        parameters = entries(node, "parameters")
        owners = {name: name for name in parameters}
        for name, parameter in parameters.items():
            for alias, item in items(parameter, "aliases"):
                if alias in owners:
                    path: Path = ("schemes", scheme, "parameters", name, "aliases")
                    message = f"the alias {shown(alias)} is a name of parameter {shown(owners[alias])} already"
                    say(report, "KT318", message, item, path, "a tensor can mean one parameter only")
                owners.setdefault(alias, name)


def check_rows(root: Node, names: Names, report: Report, signatures: Signatures | None) -> None:
    """Every row on its own, and against the registered constructors when they are given."""
    for kernel, row in names.kernels.items():
        path: Path = ("kernels", kernel)
        _check_runs_on(row, names, path, report)
        _check_accepts(row, names, path, report)
        _check_parameters(row, names, path, report)
        accumulator = row.at("numerics", "accumulator")
        look_up(report, "KT325", "accumulator", accumulator, ACCUMULATORS, (*path, "numerics", "accumulator"))
        verified = row.at("verified")
        for place, entry in enumerate(verified.items() if verified else ()):
            below: Path = (*path, "verified", place)
            look_up(report, "KT307", "device", entry.at("device"), names.devices, (*below, "device"))
            _check_past(report, entry.at("date"), (*below, "date"))
    if signatures is not None:
        _check_registered(root, names, signatures, report)


def _check_past(report: Report, node: Node | None, path: Path) -> None:
    """A day on which something ran is not still to come; tomorrow may have begun elsewhere."""
    day = check_date(report, node, path)
    if day is not None and node is not None and day > report.today + timedelta(days=1):
        message = f"the day {day.isoformat()} is still to come; today is {report.today.isoformat()}"
        say(report, "KT336", message, node, path, "write the day of the run")


def _check_runs_on(row: Node, names: Names, base: Path, report: Report) -> None:
    runs_on = row.at("runs_on")
    for platform, node in runs_on.entries().items() if runs_on else ():
        path: Path = (*base, "runs_on", platform)
        if runs_on is not None and platform in CHIP_KEYS and platform not in names.platforms:
            about_platform(str(base[1]), platform, runs_on, report)
            continue
        if runs_on is None or not look_up_key(report, "KT303", "platform", platform, runs_on, names.platforms):
            continue
        for key, code, kind, known in (
            ("architectures", "KT304", "architecture", names.architectures[platform]),
            ("families", "KT306", "family", names.families[platform]),
            ("features", "KT305", "feature", names.features[platform]),
        ):
            for _, item in items(node, key):
                look_up(report, code, f"{kind} of {platform}", item, known, (*path, key))
        _check_range(node, platform, path, report)


def _check_range(node: Node, platform: str, path: Path, report: Report) -> None:
    """A range of capabilities is bounded, unless the code is portable."""
    span = node.at("capability")
    if span is None:
        return
    if platform != CAPABLE:
        message = f"{platform} has no compute capability"
        say(report, "KT309", message, span, (*path, "capability"), "name features or architectures instead")
        return
    check_capabilities(report, span, (*path, "capability"))
    portable = node.at("portable")
    bounded = span.at("max") or node.at("architectures") or node.at("families")
    if not bounded and not (portable is not None and portable.value is True):
        low = capability_of(span.at("min"))
        message = f"from {low[0]}.{low[1]} on, with no upper end" if low else "no upper end"
        help = "add `max`, name families or architectures, or say `portable: true` if it is compiled on the spot"
        say(report, "KT313", message, span, (*path, "capability"), help)


def _check_accepts(row: Node, names: Names, base: Path, report: Report) -> None:
    for _, item in items(row, "accepts", "schemes"):
        look_up(report, "KT302", "scheme", item, names.schemes, (*base, "accepts", "schemes"))
    for size in ("m", "n", "k"):
        limits = row.at("accepts", size)
        if limits is not None:
            check_limits(report, limits, (*base, "accepts", size))


def _spellings(scheme: Node) -> dict[str, frozenset[str]]:
    """Parameter -> every name it goes by."""
    return {
        name: frozenset({name, *(alias for alias, _ in items(node, "aliases"))})
        for name, node in entries(scheme, "parameters").items()
    }


def _check_parameters(row: Node, names: Names, base: Path, report: Report) -> None:
    """A row takes parameters that one of its schemes has, and all that its schemes require."""
    mine = dict(items(row, "parameters"))
    node = row.at("parameters")
    schemes = [name for name, _ in items(row, "accepts", "schemes") if name in names.schemes]
    if node is None or not schemes:
        return
    path: Path = (*base, "parameters")
    spelled = {name: _spellings(names.schemes[name]) for name in schemes}
    known = {name for spellings in spelled.values() for every in spellings.values() for name in every}
    for name, item in mine.items():
        if name not in known:
            message = f"the parameter {shown(name)} is in none of its schemes ({listed(schemes)})"
            say(report, "KT319", message, item, path, nearest(name, known))
    for scheme in schemes:
        for name, every in spelled[scheme].items():
            required = names.schemes[scheme].at("parameters", name, "required")
            if required is not None and required.value is True and not every & mine.keys():
                message = f"scheme {shown(scheme)} requires {name}, which the row does not take"
                say(report, "KT320", message, node, path, f"add {name}, or take the scheme out of `accepts`")


def _check_registered(root: Node, names: Names, signatures: Signatures, report: Report) -> None:
    """Rows against the constructors: the same ids, and parameters that fit."""
    section = root.at("kernels")
    if section is None:
        return
    for kernel, row in names.kernels.items():
        if kernel not in signatures:
            message = f"kernel {shown(kernel)}: no such kernel is registered"
            help = nearest(kernel, signatures) + "; its file is kernels/ID.py, or a package announces it"
            report.add("KT323", message, section.keys[kernel], path=("kernels", kernel), length=len(kernel), help=help)
            continue
        _check_signature(kernel, row, signatures, report)
    rest = sorted(set(signatures) - set(names.kernels))
    if rest:
        message = f"registered kernels without a row, which nothing can choose: {listed(rest)}"
        report.add("KT324", message, section.mark, path=("kernels",), help="add a row, or take the file out")


def _check_signature(kernel: str, row: Node, signatures: Signatures, report: Report) -> None:
    path: Path = ("kernels", kernel, "parameters")
    taken, node = signatures[kernel], row.at("parameters")
    given = dict(items(row, "parameters"))
    for name, item in given.items():
        if name not in taken:
            message = f"its constructor does not take {shown(name)}"
            say(report, "KT321", message, item, path, f"it takes {listed(taken)}")
    missing = [name for name, required in taken.items() if required and name not in given]
    if missing and node is not None:
        say(report, "KT322", f"its constructor requires {listed(missing)}", node, path, "add it to `parameters`")
