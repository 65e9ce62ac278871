"""`kerneltable matrix`: scheme x device, which kernel wins which problems, as text, JSON or one HTML page.

Exact, not sampled, and for devices by name: no accelerator is needed and torch is never imported.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from textwrap import wrap
from typing import TYPE_CHECKING

from kerneltable.cli.devices import add_devices, devices_of
from kerneltable.cli.options import DTYPES, add_format, add_layers, named_file, say_unasked, table_of
from kerneltable.cli.output import print_json, print_lines, write_text
from kerneltable.cli.registered import say_unregistered

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers
    from kerneltable.model import Table
    from kerneltable.select.matrix import Matrix, Row, Won

WIDTH = 110


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("matrix", help="scheme x device: who wins what", description=__doc__)
    parser.add_argument("--scheme", metavar="NAME", action="append", help="this scheme alone; repeatable")
    parser.add_argument("--input", choices=DTYPES, default="bf16", help="input dtype (default: bf16)")
    parser.add_argument("--output", choices=DTYPES, help="output dtype (default: that of the input)")
    add_devices(parser)
    add_layers(parser)
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=named_file, help="write the answer to a file instead of stdout"
    )
    add_format(parser, ("text", "json", "html"))


def run(args: Namespace) -> int:
    """Print the matrix; 0 when every problem of every cell has a kernel, 1 when some have none."""
    from kerneltable.select.matrix import matrix, rows_of

    table = table_of(args)
    rows = rows_of(table, devices_of(args, table), unknown=not (args.devices or args.facts))
    say_unasked(args.packages, table)
    found = matrix(table, rows, schemes=args.scheme, input=args.input, output=args.output or args.input)
    say_unregistered(table, (won.kernel for row in found.cells for cell in row for won in cell))
    dtypes = f"{args.input} -> {args.output or args.input}"
    if args.out is None:
        _print(args.format, table, found, dtypes)
    else:
        with redirect_stdout(StringIO()) as answer:
            _print(args.format, table, found, dtypes)
        write_text(args.out, answer.getvalue())
    served = all(won.kernel is not None for row in found.cells for cell in row for won in cell)
    return 0 if served else 1


def _print(form: str, table: Table, found: Matrix, dtypes: str) -> None:
    from kerneltable.cli.matrix_page import as_json, page

    if form == "json":
        print_json(as_json(table, found, dtypes))
    elif form == "html":
        print(page(table, found, dtypes), end="")
    else:
        print_lines(_lines(found, dtypes))


def _lines(found: Matrix, dtypes: str) -> Iterator[str]:
    """A block for each scheme and granularity; devices with the same answer stand together."""
    for place, column in enumerate(found.columns):
        if place:
            yield ""
        yield f"{column.scheme} ({column.label}), {dtypes}"
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row, cells in zip(found.rows, found.cells, strict=True):
            groups.setdefault(tuple(_told(cells[place])), []).append(row)
        for answers, rows in groups.items():
            names = "; ".join(_where(row) for row in rows)
            yield from wrap(names, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            yield from (f"      {answer}" for answer in answers)


def _told(cell: Sequence[Won]) -> Iterator[str]:
    """A line for each winner; the last of several takes what the others leave, its exact region is in the JSON."""
    for rank, won in enumerate(cell):
        kernel = "no kernel" if won.kernel is None else won.kernel
        region = "everything else" if 0 < rank == len(cell) - 1 else won.region
        yield kernel if region == "every problem" else f"{kernel} <- {region}"


def _where(row: Row) -> str:
    chip = row.device.architecture or row.device.platform
    return chip if row.names in ((), (chip,)) else f"{chip} ({', '.join(row.names)})"
