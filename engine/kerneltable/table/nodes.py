"""YAML text to nodes that know their place. The only importer of yaml.

The text is walked as a stream of events and never composed or constructed: size, depth, tags, anchors, merge keys
and further documents are refused while they are met, so time and memory stay bounded and no object is ever built
from a file. What is read is the part of YAML that every YAML 1.1 and 1.2 tool reads with one meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from kerneltable.model import Mark
from kerneltable.table.node import Node
from kerneltable.table.report import ENOUGH, Path, Report, dotted, shown
from kerneltable.table.scalars import Refused, read_plain
from kerneltable.table.source import character_in
from kerneltable.table.syntax import explain

DEEPEST = 24
MOST_EVENTS = 20_000
LONGEST_TEXT = 4_000
_GLUED = re.compile(r"[|>][-+0-9]*#")


def loaders() -> tuple[str, ...]:
    """The readers that this installation has, best first: "c" (libyaml) where PyYAML was built with it, "python"."""
    return ("c", "python") if hasattr(yaml, "CSafeLoader") else ("python",)


def read_nodes(text: str, file: str, report: Report, *, loader: str | None = None) -> Node | None:
    """Read one document that must be a mapping; None when it cannot be used, and the report says why.

    text    decoded, with its characters already checked (source.decode)
    loader  "c" or "python"; None takes the best there is. Both give the same verdict.
    """
    chosen = yaml.SafeLoader if (loader or loaders()[0]) == "python" else yaml.CSafeLoader
    builder = _Builder(file, report, text.split("\n"))
    for count, event in enumerate(_events(text, chosen)):
        if isinstance(event, Exception):
            builder.broken(event)
            return None
        if count >= MOST_EVENTS:
            message = f"the file has more than {MOST_EVENTS} values and brackets"
            report.add("KT123", message, builder.mark(event), help="a table of this size is a mistake; split it")
            return None
        if not builder.take(event) or len(report.findings) >= ENOUGH:
            return None
    return builder.document()


def _events(text: str, loader: Any) -> Iterator[Any]:
    """The events of a text; where it stops being YAML, the error as the last one.

    The Python reader lets ValueError and OverflowError out of escapes that name no character.
    """
    try:
        yield from yaml.parse(text, Loader=loader)
    except (yaml.YAMLError, ArithmeticError, ValueError) as error:
        yield error


@dataclass(slots=True)
class _Open:
    """A mapping or list that is still being read."""

    mark: Mark
    is_map: bool
    refused: bool
    flow: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)
    key: str | None = None
    expects_value: bool = False
    is_key: bool = False


class _Builder:
    """Takes events one by one; a stack of open collections replaces recursion."""

    def __init__(self, file: str, report: Report, lines: list[str]) -> None:
        self.file = file
        self.lines = lines
        self.report = report
        self.open: list[_Open] = []
        self.root: Node | None = None
        self.documents = 0
        self.last: Any = None

    def mark(self, event: Any) -> Mark:
        return Mark(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def path(self) -> Path:
        """Where the reader stands; built only for findings."""
        parts: list[str | int] = []
        for level in self.open:
            if level.is_map and level.key is not None:
                parts.append(level.key)
            elif not level.is_map:
                parts.append(len(level.items))
        return tuple(parts)

    def take(self, event: Any) -> bool:
        """Handle one event; False means that reading on makes no sense."""
        kind = type(event)
        self.last = event
        if kind is yaml.ScalarEvent:
            self.scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            return self.start(event, kind is yaml.MappingStartEvent)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self.end()
        elif kind is yaml.AliasEvent:
            self.refuse("KT108", f"*{event.anchor} repeats another part of the file", event, "write the value out")
            self.give(Node(None, self.mark(event), refused=True))
        elif kind is yaml.DocumentStartEvent:
            self.documents += 1
            if self.documents > 1:
                self.refuse("KT111", "a second document starts here", event, "keep one document in a file")
                return False
        return True

    def refuse(self, code: str, message: str, event: Any, help: str, length: int = 1) -> None:
        self.report.add(code, message, self.mark(event), path=self.path(), length=length, help=help)

    def decorated(self, event: Any) -> bool:
        """True when the value carries an anchor or a tag; both are refused."""
        if event.anchor is not None:
            self.refuse("KT108", f"&{event.anchor} names a part of the file to repeat it", event, "take it out")
        if event.tag is not None:
            self.refuse("KT110", f"the tag {shown(event.tag)} asks for another type", event, "take the tag out")
        return event.anchor is not None or event.tag is not None

    def start(self, event: Any, is_map: bool) -> bool:
        if len(self.open) >= DEEPEST:
            self.refuse("KT107", f"values are nested deeper than {DEEPEST} levels", event, "no key is that deep")
            return False
        level = _Open(self.mark(event), is_map, self.decorated(event), bool(event.flow_style))
        if self.open and self.open[-1].is_map and not self.open[-1].expects_value:
            level.is_key = True
            self.refuse("KT113", "a key must be a name, not a mapping or list", event, "write the key as text")
        self.open.append(level)
        return True

    def end(self) -> None:
        level = self.open.pop()
        if level.is_key:
            self.open[-1].expects_value, self.open[-1].key = True, None
            return
        value: Any = level.entries if level.is_map else tuple(level.items)
        if level.refused:
            value = None
        self.give(Node(value, level.mark, 1, "", level.keys, level.refused))

    def give(self, node: Node) -> None:
        """Hand a finished value, or a refused key, to the collection it belongs to."""
        if not self.open:
            self.root = node
            return
        level = self.open[-1]
        if not level.is_map:
            level.items.append(node)
        elif not level.expects_value:
            level.expects_value, level.key = True, None
        else:
            if level.key is not None and level.key not in level.entries:
                level.entries[level.key] = node
            level.expects_value, level.key = False, None

    def scalar(self, event: Any) -> None:
        if self.open and self.open[-1].is_map and not self.open[-1].expects_value:
            self.key(event)
            return
        refused = self.decorated(event)
        value: Any = event.value
        length = event.end_mark.column - event.start_mark.column
        if event.end_mark.line != event.start_mark.line:
            length = 1
        if not refused:
            reading = event.value if event.style else read_plain(event.value)
            bad = reading if isinstance(reading, Refused) else _unfit(event.value) or self.read_differently(event)
            refused = bad is not None
            value = reading
            if bad is not None and (self.open or bad.code != "KT116"):
                self.refuse(bad.code, bad.message, event, bad.help, length)
        self.give(Node(None if refused else value, self.mark(event), length, event.value, refused=refused))

    def read_differently(self, event: Any) -> Refused | None:
        """Spellings that one of the two readers takes and the other refuses: `|# text`, and {a: b?}."""
        if not event.style and "?" in event.value and any(level.flow for level in self.open):
            return Refused("KT101", "a question mark inside brackets starts a key for some readers", "quote the text")
        line = self.lines[event.start_mark.line][event.start_mark.column :] if event.style in ("|", ">") else ""
        if _GLUED.match(line) is None:
            return None
        return Refused("KT101", "a comment starts right after the sign of a block of text", "put a space before #")

    def key(self, event: Any) -> None:
        level = self.open[-1]
        level.expects_value, level.key = True, None
        name, length = event.value, max(1, event.end_mark.column - event.start_mark.column)
        if self.decorated(event):
            return
        if not event.style and name == "<<":
            self.refuse("KT109", "<< merges another mapping into this one", event, "write the keys out", length)
            return
        reading = name if event.style else read_plain(name)
        bad = reading if isinstance(reading, Refused) else _unfit(name, is_key=True) or self.read_differently(event)
        if bad is None and not isinstance(reading, str):
            bad = Refused("KT113", f"the key {shown(name)} is not text", f'quote it: "{name[:40]}"')
        if bad is not None:
            code = bad.code if bad.code in ("KT101", "KT105", "KT114", "KT123") else "KT113"
            message = bad.message if code != "KT113" else f"the key {shown(name)} is not text"
            self.refuse(code, message, event, bad.help or "write the key as text", length)
            return
        if name in level.keys:
            first = level.keys[name]
            message = f"the key {shown(name)} is set twice: on line {first.line} and on line {self.mark(event).line}"
            self.report.add(
                "KT104", message, self.mark(event), path=(*self.path(), name), length=length,
                help=f"keep one of them; the first is at {first}",
            )  # fmt: skip
            return
        level.key = name
        level.keys[name] = self.mark(event)

    def broken(self, error: Exception) -> None:
        """The text is not YAML from here on."""
        code, message, help = explain(error)
        place = getattr(error, "problem_mark", None) or self.last.end_mark
        mark = Mark(self.file, min(place.line + 1, len(self.lines)), place.column + 1)
        path = dotted(self.path())
        self.report.add(code, f"{message}{f' (in {path})' if path else ''}", mark, path=self.path(), help=help)

    def document(self) -> Node | None:
        """The document's mapping, or None with a finding."""
        root = self.root
        if root is None or (root.refused and root.written in ("", "~", "null", "Null", "NULL")):
            self.report.add(
                "KT120", "the file is empty", Mark(self.file, 1, 1), help="start it with `table: 1` or `override: 1`"
            )
            return None
        if not isinstance(root.value, dict):
            if not root.refused:
                message = "the file must be a mapping of keys to values"
                self.report.add("KT124", message, root.mark, help="start it with `table: 1` or `override: 1`")
            return None
        return root


def _unfit(text: str, *, is_key: bool = False) -> Refused | None:
    """Why a text cannot be used: too long, or a character that only an escape could have put there."""
    if len(text) > LONGEST_TEXT:
        return Refused("KT123", f"a text of {len(text)} characters", f"use at most {LONGEST_TEXT}")
    bad = character_in(text if is_key else text.replace("\n", ""))
    if bad is None:
        return None
    return Refused("KT105", f"the text holds the character {bad}", "use characters that can be seen")
