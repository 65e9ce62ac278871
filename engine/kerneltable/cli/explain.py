"""`kerneltable explain`: which kernel a problem gets on a device, and what refuses every other."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from kerneltable.cli.colour import painted
from kerneltable.cli.options import add_format, add_layers, add_question, question_of
from kerneltable.cli.output import print_json, print_lines
from kerneltable.cli.registered import with_unregistered

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("explain", help="which kernel, and why not the others", description=__doc__)
    add_question(parser)
    add_layers(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="every refusal of every candidate")
    add_format(parser)


def run(args: Namespace) -> int:
    """Print the selection with every candidate; 0 when a kernel was chosen, 1 when none takes the problem."""
    from kerneltable.select import explain, select

    table, device, problem = question_of(args)
    selection = with_unregistered(table, select(table, device, problem))
    if args.format == "json":
        print_json(explain.as_json(table, selection))
    else:
        lines = explain.text(table, selection, verbose=args.verbose)
        print_lines(painted(line, line.split()[0] if line.strip() else "", sys.stdout) for line in lines)
    return 0 if selection.kernel is not None else 1
