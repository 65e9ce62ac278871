"""`kerneltable schema`: the JSON Schema of tables or overrides in one file, with the names of the effective table.

An editor that is given this file checks as one types and offers kernels, schemes and chips by name.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, named_file, table_of
from kerneltable.cli.output import write_text
from kerneltable.model import Table

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers

OTHER = "dispatch.schema.json#/$defs/"
OWN = "#/$defs/"
PREFIX = "table_"


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("schema", help="the JSON Schema, for editors", description=__doc__)
    parser.add_argument(
        "which", choices=("dispatch", "override"), nargs="?", default="override", help="default: override"
    )
    add_layers(parser)
    parser.add_argument("-o", "--out", metavar="FILE", type=named_file, help="write it to a file instead of stdout")
    add_format(parser)


def run(args: Namespace) -> int:
    """Print the schema as JSON, whatever --format says; always 0."""
    text = json.dumps(schema_with_names(args.which, table_of(args)), indent=2) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        write_text(args.out, text)
    return 0


def schema_with_names(which: str, table: Table) -> dict[str, Any]:
    """The schema of "dispatch" or "override" files without references to another file.

    The names of the table stand as examples: an editor offers them, and a name that a file adds is no error.
    """
    schema = _read(which)
    if which == "dispatch":
        return _named(schema, "", table)
    definitions = {f"{PREFIX}{name}": _moved(part, OWN) for name, part in _read("dispatch")["$defs"].items()}
    bundled: dict[str, Any] = _moved(schema, OTHER)
    bundled["$defs"] = {**bundled["$defs"], **definitions}
    return _named(bundled, PREFIX, table)


def _read(which: str) -> dict[str, Any]:
    from kerneltable.table.locate import shipped

    found: dict[str, Any] = json.loads(shipped("schema", f"{which}.schema.json").read_text("utf-8"))
    return found


def _moved(part: Any, base: str) -> Any:
    """A part of a schema whose references to `base` point at the definitions that carry the prefix."""
    if isinstance(part, dict):
        moved = {name: _moved(value, base) for name, value in part.items()}
        target = part.get("$ref")
        if isinstance(target, str) and target.startswith(base):
            moved["$ref"] = f"{OWN}{PREFIX}{target.removeprefix(base)}"
        return moved
    return [_moved(item, base) for item in part] if isinstance(part, list) else part


def _named(schema: dict[str, Any], prefix: str, table: Table) -> dict[str, Any]:
    """The schema with the table's own names as examples of the ids."""
    platforms = table.platforms.values()
    chips = [chip for platform in platforms for chip in platform.architectures.values()]
    names = {
        "kernel_id": list(table.kernels),
        "scheme_id": list(table.schemes),
        "platform_id": list(table.platforms),
        "architecture_id": list(dict.fromkeys(chip.name for chip in chips)),
        "family_id": list(dict.fromkeys(family for platform in platforms for family in platform.families)),
        "feature_id": sorted({feature for chip in chips for feature in chip.features}),
    }
    definitions = dict(schema["$defs"])
    for name, known in names.items():
        definitions[f"{prefix}{name}"] = {**definitions[f"{prefix}{name}"], "examples": known}
    return {**schema, "$defs": definitions}
