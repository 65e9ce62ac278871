"""Nodes against the JSON Schema: every error at once, in our own words, at the place that is wrong.

The only importer of jsonschema. The schema files are ours alone; references in them are resolved here, before
validation, so that nothing in a user's file can make a validator open a file or a connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import ValidationError
from jsonschema.validators import Draft202012Validator

from kerneltable.model import Mark
from kerneltable.table.locate import shipped
from kerneltable.table.node import Node
from kerneltable.table.report import ENOUGH, Path, Report
from kerneltable.table.wording import CHIP_KEYS, about_key, about_platform, contradicted, mark_of, word_error

_ANNOTATIONS = frozenset({"$schema", "$defs", "title", "description"})


def load_schema(name: str) -> dict[str, Any]:
    """A schema of ours ("dispatch" or "override") with every reference replaced by what it points at."""
    documents: dict[str, Any] = {}
    parts: dict[tuple[str, str], Any] = {}

    def document(file: str) -> Any:
        if file not in documents:
            documents[file] = json.loads(shipped("schema", file).read_text("utf-8"))
        return documents[file]

    def target(reference: str, here: str) -> Any:
        file, _, pointer = reference.partition("#/$defs/")
        place = (file or here, pointer)
        if place not in parts:
            parts[place] = resolve(document(place[0])["$defs"][pointer], place[0])
        return parts[place]

    def resolve(schema: Any, here: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return target(schema["$ref"], here)
        flat: dict[str, Any] = {}
        for key, value in schema.items():
            if key == "properties":
                flat[key] = {name: resolve(entry, here) for name, entry in value.items()}
            elif key in ("items", "additionalProperties", "propertyNames", "contains", "if", "then", "else"):
                flat[key] = resolve(value, here)
            elif key == "pattern":
                flat[key] = value.removesuffix("$") + r"\Z"  # Python's $ would let a final newline pass
            elif key not in _ANNOTATIONS:
                flat[key] = value
        return flat

    file = f"{name}.schema.json"
    resolved: dict[str, Any] = resolve(document(file), file)
    return resolved


def check_schema(root: Node, schema: dict[str, Any], report: Report, path: Path = ()) -> None:
    """Report everything in root that the schema does not allow.

    path  where root lies in its document, for messages
    A value that was refused while reading is not spoken of twice.
    """
    validator = Draft202012Validator(schema)
    said: set[tuple[Any, ...]] = set()
    for error in validator.iter_errors(root.plain()):
        _report(error, root, report, path, said)
        if len(report.findings) >= ENOUGH:
            return


def _report(error: ValidationError, root: Node, report: Report, path: Path, said: set[tuple[Any, ...]]) -> None:
    below: Path = tuple(error.absolute_path)
    node = root.at(*below)
    steps = list(error.absolute_schema_path)
    if node is None or node.refused:
        return
    if _lacks_platform((*path, *below)):
        whole = (*path, *below)[:4]
        owner = root.at(*below[: 3 - len(path)])
        if owner is not None and ("KT303", whole, None) not in said:
            said.add(("KT303", whole, None))
            about_platform(str(whole[1]), str(whole[3]), owner, report)
        return
    if len(steps) > 1 and steps[-2] == "propertyNames":
        about_key(str(error.instance), node, (*path, *below), error.schema, report)
        return
    keyword = str(error.validator)
    if keyword in ("enum", "const") and ("KT203", (*path, *below), None) in said:
        return  # a value of a wrong type is not one of the values either
    parent = root.at(*below[:-1]) if keyword == "not" else node
    conditional = keyword == "not" or (keyword == "required" and ("then" in steps or "else" in steps))
    if conditional and parent is not None and any(child.refused for child in _below(parent)):
        return  # the condition looked at a value that could not be read
    place = mark_of(root, below, report_key=keyword in ("not", "required", "minProperties"))
    other = contradicted(parent, str(below[-1])) if keyword == "not" and below else None
    said_of = ""
    if other is not None and report.rank(other.mark) > report.rank(place[0]):  # a later layer set the other key
        place, said_of = (other.mark, other.length), f" ({place[0]})"
    for found in word_error(keyword, error, node, (*path, *below)):
        if len(report.findings) >= ENOUGH:
            return
        key = (found.code, found.path, found.name)
        if key not in said:
            said.add(key)
            mark, length = _spot(node, found.name, found.item, place)
            report.add(found.code, found.message + said_of, mark, path=found.path, length=length, help=found.help)


def _lacks_platform(path: Path) -> bool:
    """Whether what a kernel says of chips stands under runs_on where a platform should: {capability: {min: "9.0"}}."""
    return len(path) > 3 and (path[0], path[2]) == ("kernels", "runs_on") and path[3] in CHIP_KEYS


def _spot(node: Node, name: str | None, item: int | None, place: tuple[Mark, int]) -> tuple[Mark, int]:
    """Where to point: at an unknown key, at the second of two equal items, else at the value itself."""
    if name is not None and name in node.keys:
        return node.keys[name], len(name)
    if item is not None:
        second = node.items()[item]
        return second.mark, second.length
    return place


def _below(node: Node) -> Iterator[Node]:
    for child in node.entries().values():
        yield child
        yield from child.items()
