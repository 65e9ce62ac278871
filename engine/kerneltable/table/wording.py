"""The words for what a schema does not allow: subject, wanted, found, next step. One text per schema keyword."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kerneltable.model import Mark
from kerneltable.table.node import Node
from kerneltable.table.report import Path, Report, dotted, listed, nearest, shown

_WORDS = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "boolean": "true or false",
}  # fmt: skip
_CODES = {
    "additionalProperties": "KT201", "required": "KT202", "type": "KT203", "enum": "KT204", "const": "KT204",
    "pattern": "KT205", "minimum": "KT206", "maximum": "KT206", "minItems": "KT207", "maxItems": "KT207",
    "minProperties": "KT207", "maxProperties": "KT207", "minLength": "KT207", "maxLength": "KT207",
    "uniqueItems": "KT208", "not": "KT209",
}  # fmt: skip
CHIP_KEYS = ("capability", "architectures", "families", "features", "fp8", "portable")
"""What runs_on says of one platform; held against the schema by a test."""
_SECTIONS = {"kernels": "kernel", "schemes": "scheme", "platforms": "platform"}
_GOES_WITH = {
    "verified": "`verified` goes with `status: verified`",
    "adds": "`adds` and `removes` change a copy: name it with `like`; else write `features`",
    "removes": "`adds` and `removes` change a copy: name it with `like`; else write `features`",
    "features": "with `like`, write what differs: `adds` and `removes`",
    "block": "`block` goes with granularity block",
    "any_block": "`any_block` goes with granularity block",
    "scale": "granularity none has no scale",
    "scaling": "granularity none has no scale",
}
_AGAINST = {
    "features": "like", "verified": "status", "block": "granularity", "any_block": "granularity",
    "scale": "granularity", "scaling": "granularity",
}  # fmt: skip
"""The neighbour that a key of _GOES_WITH contradicts; `adds` contradict one that is missing."""


@dataclass(frozen=True, slots=True)
class Wording:
    """One finding without its place: name is the key it speaks of, item the place in a list."""

    code: str
    message: str
    path: Path
    help: str = ""
    name: str | None = None
    item: int | None = None


def subject(path: Path) -> str:
    """How a message names its place: kernels.x.accepts.n -> "kernel 'x': accepts.n"."""
    if len(path) >= 2 and path[0] in _SECTIONS:
        owner, rest = f"{_SECTIONS[str(path[0])]} {shown(path[1])}", path[2:]
    elif len(path) >= 3 and path[0] == "routes":
        owner, rest = f"route {shown(f'{path[1]}/{path[2]}')}", path[3:]
    else:
        owner, rest = "", path
    if owner and rest:
        return f"{owner}: {dotted(rest)}"
    return owner or dotted(rest) or "the file"


def mark_of(root: Node, path: Path, *, report_key: bool = False) -> tuple[Mark, int]:
    """The place and length of a value, or of its key where the value as a whole is meant."""
    node = root.at(*path)
    parent = root.at(*path[:-1]) if path else None
    if report_key and parent is not None and isinstance(path[-1], str) and path[-1] in parent.keys:
        return parent.keys[path[-1]], len(path[-1])
    return (root.mark, 1) if node is None else (node.mark, node.length)


def contradicted(parent: Node | None, key: str) -> Node | None:
    """The value beside a key that the key does not go with, when there is one."""
    return None if parent is None or key not in _AGAINST else parent.at(_AGAINST[key])


def found_text(node: Node) -> str:
    """A value as a message names it: the number 80, the text 'bf16', a list."""
    value = node.value
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return "a list" if isinstance(value, tuple) else "a mapping"


def about_key(name: str, node: Node, path: Path, schema: Any, report: Report) -> None:
    """Report a key that is no name of the wanted kind."""
    mark = node.keys.get(name, node.mark)
    odd = sorted({f"U+{ord(c):04X}" for c in name if not c.isascii()})
    detail = f"; it holds {', '.join(odd)}, which only looks like ASCII" if odd else ""
    example = schema.get("examples", ["scheme/platform"])[0]
    message = f"{subject(path)}: {shown(name)} is not a name{detail}"
    help = f"names look like {example}: lower case ASCII letters, digits, _ and - as shown, at most 64 characters"
    report.add("KT205", message, mark, path=(*path, name), length=len(name), help=help)


def about_platform(kernel: str, name: str, runs_on: Node, report: Report) -> None:
    """Report what is said of a platform where the platform's own name should stand; once, whoever meets it."""
    between = "cuda" if name == "capability" else "PLATFORM"
    help = f"the platform is left out: write runs_on: {{{between}: {{{name}: ...}}}}"
    path: Path = ("kernels", kernel, "runs_on")
    message = f"{subject(path)}: unknown platform {shown(name)}"
    report.add("KT303", message, runs_on.keys[name], path=(*path, name), length=len(name), help=help)


def word_error(keyword: str, error: Any, node: Node, path: Path) -> Iterator[Wording]:
    """The findings for one error of the validator; an object with three unknown keys makes three."""
    code = _code(keyword, error.schema)
    if keyword == "additionalProperties":
        yield from _unknown_keys(code, error.schema.get("properties", {}), node, path)
    elif keyword == "required":
        for name in error.validator_value:
            if name not in node.keys:
                message = f"{subject(path)}: the key {shown(name)} is missing"
                yield Wording(code, message, (*path, name), _example(error.schema, name))
    elif keyword == "uniqueItems":
        yield from _repeated(code, node, path)
    elif keyword == "not":
        help = _GOES_WITH.get(str(path[-1]), "")
        yield Wording(code, f"{subject(path)} does not go with the other keys here", path, help)
    else:
        message, help = _value(keyword, error, node)
        yield Wording(code, f"{subject(path)} {message}", path, help)


def _code(keyword: str, schema: Any) -> str:
    """The code of a keyword, or the one that the schema's $comment gives: "rule pattern KT326"."""
    comment = schema.get("$comment", "") if isinstance(schema, dict) else ""
    words = comment.split()
    if len(words) == 3 and words[:2] == ["rule", keyword]:
        return str(words[2])
    return _CODES[keyword]


def _unknown_keys(code: str, known: dict[str, Any], node: Node, path: Path) -> Iterator[Wording]:
    for name in node.entries():
        if name not in known:
            odd = sorted({f"U+{ord(c):04X}" for c in name if not c.isascii()})
            detail = f"; it holds {', '.join(odd)}, which only looks like ASCII" if odd else ""
            where = "" if not path else f"{subject(path)}: "
            message = f"{where}unknown key {shown(name)}{detail}"
            yield Wording(code, message, (*path, name), nearest(name, known), name)


def _repeated(code: str, node: Node, path: Path) -> Iterator[Wording]:
    seen: list[Any] = []
    for place, item in enumerate(node.items()):
        value = item.plain()
        if not item.refused and (type(value), value) in seen:
            message = f"{subject(path)} holds {found_text(item)} twice"
            yield Wording(code, message, (*path, place), "keep one of them", item=place)
        seen.append((type(value), value))


def _example(schema: Any, name: str) -> str:
    """A line to copy for a missing key, from the schema's own examples."""
    entry = schema.get("properties", {}).get(name, {})
    examples = entry.get("examples", []) if isinstance(entry, dict) else []
    return f"for example `{name}: {_inline(examples[0])}`" if examples else f"add `{name}`"


def _inline(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else "..."


def _value(keyword: str, error: Any, node: Node) -> tuple[str, str]:
    """What a value must be, what it is, and the next step."""
    wanted = error.validator_value
    found = found_text(node)
    if keyword == "type":
        return _type(wanted, error.schema, node)
    if keyword == "enum":
        text = node.text()
        return f"must be one of {listed(wanted)}; found {found}", nearest(text, wanted) if text is not None else ""
    if keyword == "const":
        return f"must be {wanted}; found {found}", "this program reads that version alone"
    if keyword == "pattern":
        examples = [_inline(example) for example in error.schema.get("examples", []) if isinstance(example, str)]
        return f"has the wrong form: {found}", f"write it like {' or '.join(examples)}" if examples else ""
    bounds = {
        "minimum": "at least {} is taken", "maximum": "at most {} is taken",
        "minItems": "must have {} or more items", "maxItems": "must have at most {} items",
        "minProperties": "must have {} or more keys", "maxProperties": "must have at most {} keys",
        "minLength": "must have {} or more characters", "maxLength": "must have at most {} characters",
    }  # fmt: skip
    size = found if keyword in ("minimum", "maximum") else f"{len(node.value)}"
    help = "`replace` stands alone: it is the whole new order" if _code(keyword, error.schema) == "KT402" else ""
    return f"is out of bounds: {bounds[keyword].format(wanted)}; found {size}", help


def _type(wanted: Any, schema: Any, node: Node) -> tuple[str, str]:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    words = " or ".join(_WORDS[name] for name in names)
    help = ""
    if _code("type", schema) == "KT401":
        help = "an order changes by verbs: {order: {prepend: [NAME]}}, or {order: {replace: [NAME, ...]}} for all of it"
    elif "string" in names and isinstance(node.value, int):
        help = f'quote it: "{node.written}"'
    elif "array" in names and isinstance(node.value, str | int):
        help = f"write a list: [{node.written}]"
    elif names == ["integer"] and isinstance(node.value, str):
        help = "take the quotes off" if node.value.isdigit() else ""
    return f"must be {words}; found {found_text(node)}", help
