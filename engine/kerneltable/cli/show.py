"""`kerneltable show`: the effective table after all overrides, value by value, each with its file and line.

With --origin also what each value replaced, and the items that were taken out with the line that took them out.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, table_of
from kerneltable.cli.output import print_json, print_lines

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers
    from kerneltable.model import Table
    from kerneltable.table.origin import Origin

WIDEST_PLACE = 44


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser(
        "show", help="the effective table with the place of every value", description=__doc__
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="", help="a part: kernels.triton_w8a16, routes.mxfp8.cuda"
    )
    parser.add_argument(
        "--origin", action="store_true", help="also what each value replaced, and what was removed by which line"
    )
    add_layers(parser)
    add_format(parser)


def run(args: Namespace) -> int:
    """Print path, value and place of every value below PATH; 2 when the table has no such path."""
    table = table_of(args)
    if args.origin:
        _show_origins(args, table)
        return 0
    from kerneltable.cli.stated import below, stated
    from kerneltable.cli.values import values_of

    values = below(values_of(table), stated(table), args.path)
    if args.format == "json":
        listed = [{"path": ".".join(path), "value": value, "where": str(mark)} for path, value, mark in values]
        print_json({"format": 1, "layers": _layers(table), "digest": table.digest, "values": listed})
        return 0
    print_lines(_head(table))
    width = min(60, max((len(".".join(path)) + len(value) for path, value, _ in values), default=0))
    for path, value, mark in values:
        said = f"{'.'.join(path)}: {value}"
        print(f"{said:<{width + 2}}  {mark}")
    return 0


def _layers(table: Table) -> list[dict[str, str]]:
    return [{"name": layer.name, "sha256": layer.sha256} for layer in table.layers]


def _head(table: Table) -> Iterator[str]:
    for layer in table.layers:
        yield f"# {layer.name}  sha256 {layer.sha256}"


def _show_origins(args: Namespace, table: Table) -> None:
    from kerneltable.cli.values import check_path
    from kerneltable.table.origin import origins

    every = origins(table)
    parts = tuple(part for part in args.path.split(".") if part)
    found = [one for one in every if tuple(map(str, one.path))[: len(parts)] == parts]
    check_path([tuple(map(str, one.path)) for one in every], args.path)
    if args.format == "json":
        values = [_as_json(one) for one in found]
        print_json({"format": 1, "layers": _layers(table), "digest": table.digest, "values": values})
        return
    print_lines(_head(table))
    print_lines(origin_lines(found))


def origin_lines(found: Sequence[Origin]) -> Iterator[str]:
    """Each value below the mapping or list that it stands in, with its place in front, as `git blame` does it."""
    width = min(WIDEST_PLACE, max((len(str(one.removed or one.mark)) for one in found), default=0))
    group: tuple[str | int, ...] | None = None
    for one in found:
        above = one.path if one.removed else one.path[:-1]
        if above != group:
            group = above
            yield ""
            yield ".".join(map(str, above)) or "(top)"
        yield f"  {one.removed or one.mark!s:<{width}}  {_told(one)}"


def _told(one: Origin) -> str:
    if one.removed:
        return f"  # removed {one.text} ({one.mark})"
    last = one.path[-1]
    text = f"- {one.text}" if isinstance(last, int) else f"{last}: {one.text}"
    notes = [f"was {earlier.text} ({earlier.mark})" for earlier in reversed(one.replaced)]
    notes += [one.note] if one.note else []
    return f"{text}  # {'; '.join(notes)}" if notes else text


def _as_json(one: Origin) -> dict[str, Any]:
    return {
        "path": ".".join(map(str, one.path)),
        "value": one.text,
        "where": str(one.mark),
        "replaced": [{"value": earlier.text, "where": str(earlier.mark)} for earlier in one.replaced],
        "removed": None if one.removed is None else str(one.removed),
        "note": one.note,
    }
