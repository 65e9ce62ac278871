"""`kerneltable diff`: which problems get another kernel on which chips, as exact regions; exit 1 when some do."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

from kerneltable.cli.colour import painted
from kerneltable.cli.devices import add_devices, devices_of
from kerneltable.cli.options import add_format, add_trust, named_file, say_unasked
from kerneltable.cli.output import print_json, print_lines
from kerneltable.cli.proofs import file_options, merged
from kerneltable.cli.registered import say_unregistered
from kerneltable.errors import Finding, ProblemError
from kerneltable.model import Device, Table

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers
    from kerneltable.select.diff import Change, Side

STYLES = {"lost": "error", "slower": "error"}
Options = tuple[str, str]


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("diff", help="which problems get another kernel", description=__doc__)
    parser.add_argument("a", metavar="A", nargs="?", help="a table (default: the one that comes with kerneltable)")
    parser.add_argument("b", metavar="B", nargs="?", help="the other table (default: A again)")
    parser.add_argument(
        "-f", "--override", metavar="FILE", type=named_file, action="append", default=[],
        help="an override file over B; repeatable, later ones win",
    )  # fmt: skip
    parser.add_argument(
        "--base-override",
        metavar="FILE",
        type=named_file,
        action="append",
        default=[],
        help="an override file over A; repeatable",
    )
    add_trust(parser)
    add_devices(
        parser, default="every architecture of both tables, names of another chip now, and a chip that nobody knows yet"
    )
    add_format(parser, ("text", "json", "github", "sarif"))


def run(args: Namespace) -> int:
    """Print every change, the loudest first; 0 when no decision changes, else 1."""
    from kerneltable.select.diff import diff
    from kerneltable.table import load_table

    trusting = args.allow_insecure_permissions
    one = load_table(args.a, args.base_override, any_writer=trusting)
    other = load_table(args.b or args.a, args.override, any_writer=trusting)
    changes = diff(one, other, _pairs(args, one, other))
    say_unasked(args.packages, one, other)
    say_unregistered(other, (change.after.kernel for change in changes))
    more = f" --with {quote(args.packages)}" if args.packages is not None else ""
    files = (file_options(args.a, args.base_override), file_options(args.b or args.a, args.override))
    options = (f"{files[0]}{more}".strip(), f"{files[1]}{more}".strip())
    if args.format == "json":
        print_json(_answer(one, other, changes, options))
    elif args.format == "text":
        print_lines(_text(one, other, changes, options))
    else:
        _print_findings(args.format, merged(other, [], _findings(one, other, changes, options)))
    return 1 if changes else 0


def _pairs(args: Namespace, one: Table, other: Table) -> list[tuple[Device, Device]]:
    """The devices that were asked for, else every architecture, as each table knows them."""
    from kerneltable.select import with_packages
    from kerneltable.select.diff import every_device

    if not (args.devices or args.facts):
        pairs = every_device(one, other)
        if args.packages is None:
            return pairs
        return [(with_packages(a, args.packages), with_packages(b, args.packages)) for a, b in pairs]
    here, there = _asked(args, one), _asked(args, other)
    if isinstance(here, ProblemError) and isinstance(there, ProblemError):
        raise here
    mine = there if isinstance(here, ProblemError) else here
    theirs = here if isinstance(there, ProblemError) else there
    assert not isinstance(mine, ProblemError)
    assert not isinstance(theirs, ProblemError)
    return list(zip(mine, theirs, strict=True))


def _asked(args: Namespace, table: Table) -> list[Device] | ProblemError:
    try:
        return devices_of(args, table)
    except ProblemError as error:  # one of the tables may know more devices than the other
        return error


def _text(one: Table, other: Table, changes: Sequence[Change], options: Options) -> Iterator[str]:
    count = len(changes)
    for change in changes:
        yield from _change_lines(one, other, change, options)
    names = " -> ".join(" + ".join(layer.name for layer in table.layers) for table in (one, other))
    yield f"{names}: {count or 'no'} change{'' if count == 1 else 's'}"


def _change_lines(one: Table, other: Table, change: Change, options: Options) -> Iterator[str]:
    from kerneltable.select.region_text import region_text

    word = change.loudness
    names = ", ".join(_named(device) for device in change.devices)
    head = f"{word}: {change.scheme} on {names}: {_short(change.before)} -> {_short(change.after)}"
    head += _of_models(change)
    yield painted(head, word, sys.stdout) if word not in STYLES else _loud(head, word)
    yield f"  where  {region_text(change.space, change.boxes, change.space.ordinary)}"
    said = [f"{name} {_plain(a)} -> {_plain(b)}" for name, (a, b) in change.differences().items() if name != "kernel"]
    if said:
        yield f"  also   {', '.join(said)}"
    for label, command in zip(("before", "after "), _commands(one, other, change, options), strict=True):
        if command:
            yield f"  {label} {command}"


def _loud(head: str, word: str) -> str:
    from kerneltable.cli.colour import STYLES as COLOURS
    from kerneltable.cli.colour import wants_colour

    loud = word.upper()
    if not wants_colour(sys.stdout):
        return head.replace(word, loud, 1)
    return head.replace(word, f"\033[{COLOURS[STYLES[word]]}m{loud}\033[0m", 1)


def _commands(one: Table, other: Table, change: Change, options: Options) -> tuple[str, str]:
    """The `explain` commands of one problem for both tables; "" for a device that `--device` does not find again."""
    from kerneltable.select.region_text import explain_command

    device = change.devices[0]
    sides = ((one, change.before, options[0]), (other, change.after, options[1]))
    first, second = (
        explain_command(table, change.problem, device.name, more) if side.known and _found_again(table, device) else ""
        for table, side, more in sides
    )
    return first, second


def _found_again(table: Table, known: Device) -> bool:
    """Whether the device's name stands for this chip in the table, with packages assumed and not looked at."""
    from kerneltable.select import device

    try:
        found = device(known.name, table)
    except ProblemError:
        return False
    looked_at = any(version is not None for version in known.packages.values())
    return (found.platform, found.architecture) == (known.platform, known.architecture) and not looked_at


def _answer(one: Table, other: Table, changes: Iterable[Change], options: Options) -> dict[str, Any]:
    tables = {
        name: {"digest": t.digest, "layers": [{"name": x.name, "sha256": x.sha256} for x in t.layers]}
        for name, t in (("a", one), ("b", other))
    }
    return {"format": 1, **tables, "changes": [_change_json(one, other, change, options) for change in changes]}


def _change_json(one: Table, other: Table, change: Change, options: Options) -> dict[str, Any]:
    from kerneltable.select.region_text import box_json

    before, after = _commands(one, other, change, options)
    return {
        "change": change.loudness,
        "scheme": change.scheme,
        "devices": [_named(device) for device in change.devices],
        "models": list(change.models),
        "architectures": [device.architecture for device in change.devices],
        "from": change.before.kernel,
        "to": change.after.kernel,
        "differences": {name: {"from": a, "to": b} for name, (a, b) in change.differences().items()},
        "region": [box_json(change.space, box, change.space.ordinary) for box in change.boxes],
        "where": str(change.where),
        "explain": {"before": before, "after": after},
    }


def _findings(one: Table, other: Table, changes: Iterable[Change], options: Options) -> Iterator[Finding]:
    from kerneltable.select.region_text import region_text
    from kerneltable.table.rules import rules

    for change in changes:
        code = "KT511" if change.loudness in STYLES else "KT510"
        names = ", ".join(_named(device) for device in change.devices)
        message = (
            f"{change.scheme} on {names}: {_short(change.before)} -> {_short(change.after)}{_of_models(change)} for "
        )
        message += region_text(change.space, change.boxes, change.space.ordinary)
        witness = _commands(one, other, change, options)[1]
        path = f"routes.{change.scheme}.{change.devices[0].platform}"
        yield Finding(code, rules()[code].severity, message, change.where, path, witness=witness)


def _print_findings(form: str, findings: tuple[Finding, ...]) -> None:
    from kerneltable.cli.findings import github_lines
    from kerneltable.cli.reports import sarif

    if form == "sarif":
        print(json.dumps(sarif(findings), indent=2))
    else:
        print_lines(github_lines(findings))


def _of_models(change: Change) -> str:
    """Which models a change is about, when it is not about all."""
    return f", for models {' and '.join(change.models)}" if change.models else ""


def _named(device: Device) -> str:
    if device.architecture is None:
        return f"unknown chip {device.name}".rstrip()
    name = device.name or device.architecture
    return name if name in (device.architecture, f"{device.platform}:{device.architecture}") else (
        f"{name} ({device.architecture})"
    )  # fmt: skip


def _short(side: Side) -> str:
    if side.kernel is None:
        return "nothing" if side.known else "not in this table"
    return f"{side.kernel} ({side.kind})"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
