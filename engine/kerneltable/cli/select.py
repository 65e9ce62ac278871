"""`kerneltable select`: the chosen kernel alone, one word for scripts."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from kerneltable.cli.options import add_format, add_layers, add_question, question_of
from kerneltable.cli.output import print_json
from kerneltable.cli.registered import say_unregistered, unregistered_notes

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("select", help="the chosen kernel alone", description=__doc__)
    add_question(parser)
    add_layers(parser)
    add_format(parser)


def run(args: Namespace) -> int:
    """Print the id of the chosen kernel; 1 and nothing on stdout (JSON: null) when none takes the problem."""
    from kerneltable.select import select

    table, device, problem = question_of(args)
    selection = select(table, device, problem)
    if args.format == "json":
        notes = [*selection.notes, *unregistered_notes(table, [selection.kernel])]
        print_json({"format": 1, "chosen": selection.kernel, "table": {"digest": table.digest}, "notes": notes})
    elif selection.kernel is not None:
        print(selection.kernel)
    say_unregistered(table, [selection.kernel])
    if selection.kernel is None:
        for note in selection.notes:
            print(f"kerneltable: {note}", file=sys.stderr)
        print(
            "kerneltable: no kernel takes this; `kerneltable explain` with the same options says why", file=sys.stderr
        )
    return 0 if selection.kernel is not None else 1
