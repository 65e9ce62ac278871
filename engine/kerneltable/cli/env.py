"""`kerneltable env`: the present machine as the selection sees it; --json writes a facts file for `explain --facts`."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, size, table_of
from kerneltable.cli.output import print_json

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("env", help="the present machine as the selection sees it", description=__doc__)
    add_layers(parser)
    parser.add_argument("--index", type=size, help="which GPU (default: torch's current one)")
    add_format(parser)
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")


def run(args: Namespace) -> int:
    """Print versions and device facts; always 0: what cannot be found out is null."""
    from kerneltable import __version__
    from kerneltable.run.probe import current_device
    from kerneltable.select.facts import FORMAT, to_facts

    table = table_of(args)
    device = current_device(table, args.index)
    answer: dict[str, Any] = {
        "format": FORMAT,
        "kerneltable": __version__,
        "python": sys.version.split()[0],
        "os": sys.platform,
        "table": {"digest": table.digest},
        "device": to_facts(device),
    }
    if args.format == "json":
        print_json(answer)
        return 0
    facts = {**{name: answer[name] for name in ("kerneltable", "python", "os")}, **answer["device"]}
    facts["packages"] = ", ".join(f"{name} {version or '(here)'}" for name, version in facts["packages"].items())
    facts["ops"] = ", ".join(facts["ops"])
    for name, value in facts.items():
        print(f"{name:<18} {'unknown' if value is None else value if value != '' else 'none'}")
    return 0
