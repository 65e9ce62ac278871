"""Which layers a quantization config means: exact names, "re:" expressions, the class Linear, and globs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kerneltable.errors import CheckpointError

LONGEST = 512
"""Characters that an expression or name of a config may have; real ones stay below 100."""

MOST_REPEATS = 6
"""Unbounded repetitions that one expression may have; real ones have at most 4."""

CLASS = "Linear"

_CLASS_START = re.compile(r"\^?\]?")


@dataclass(frozen=True, slots=True)
class Patterns:
    """A list of targets or of ignored layers, ready to be asked about a layer's name.

    names        exact layer names
    expressions  (text, compiled), matched from the start of the name, as the compressed-tensors library does
    all_linear   the list names the class "Linear"
    """

    names: frozenset[str]
    expressions: tuple[tuple[str, re.Pattern[str]], ...]
    all_linear: bool

    def named_by(self, layer: str) -> str | None:
        """The entry that names this layer, as a name or an expression; None if none does ("Linear" does not count)."""
        if layer in self.names:
            return layer
        return next((text for text, expression in self.expressions if expression.match(layer)), None)

    def is_exact(self, layer: str) -> bool:
        """True when the layer's own name is in the list."""
        return layer in self.names

    def container_of(self, layer: str) -> str | None:
        """The entry that names a module around this layer; None if none does."""
        parts = layer.split(".")
        return next((p for p in (".".join(parts[:i]) for i in range(1, len(parts))) if p in self.names), None)


def read_patterns(entries: Iterable[object], where: str) -> Patterns:
    """Entries of compressed-tensors: "re:..." is an expression, "Linear" the class, anything else a name.

    errors   CheckpointError: not text, too long, or an expression that does not compile or could run for ever
    """
    names: set[str] = set()
    expressions: list[tuple[str, re.Pattern[str]]] = []
    all_linear = False
    for entry in entries:
        text = _checked(entry, where)
        if text.startswith("re:"):
            expressions.append((text, compile_expression(text[3:], where)))
        elif text == CLASS:
            all_linear = True
        else:
            names.add(text)
    return Patterns(frozenset(names), tuple(expressions), all_linear)


def read_globs(entries: Iterable[object], where: str) -> Patterns:
    """Entries of Hugging Face FP8 and ModelOpt: a name stands for itself, for what is inside it, and for each module
    whose last parts it is; "*" stands for any characters, and a dot for a dot.

    errors   CheckpointError: not text, or too long
    """
    expressions = []
    for entry in entries:
        text = _checked(entry, where)
        if text.startswith("re:"):
            expressions.append((text, compile_expression(text[3:], where)))
            continue
        pieces = [re.escape(piece) for piece in re.sub(r"\*+", "*", text).split("*")]
        if len(pieces) > MOST_REPEATS:
            raise CheckpointError(f"{where}: {text!r} has more than {MOST_REPEATS - 1} stars; shorten it")
        expressions.append((text, re.compile(rf"(?:.*\.)?{'.*'.join(pieces)}(?:\..*)?\Z")))
    return Patterns(frozenset(), tuple(expressions), False)


def compile_expression(text: str, where: str) -> re.Pattern[str]:
    """Compile an expression of a config; it must not be able to run for ever.

    errors   CheckpointError: does not compile; repeats something that itself repeats; more repeats than MOST_REPEATS
    """
    try:
        compiled = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: expression {text!r} does not compile: {error}; correct it") from None
    repeats, nested = _repeats(text)
    if nested or repeats > MOST_REPEATS or re.search(r"\\[1-9]|\(\?P=", text):
        raise CheckpointError(
            f"{where}: expression {text!r} repeats a repetition, repeats more than {MOST_REPEATS} times or refers "
            "back: matching it could take for ever; write it flat"
        )
    return compiled


def _checked(entry: object, where: str) -> str:
    if not isinstance(entry, str) or not entry:
        raise CheckpointError(f"{where}: a layer pattern must be text; found {str(entry)[:80]!r}")
    if len(entry) > LONGEST:
        raise CheckpointError(
            f"{where}: a layer pattern may have {LONGEST} characters; {entry[:40]!r}... has {len(entry)}"
        )
    return entry


def _repeats(text: str) -> tuple[int, bool]:
    """(number of repetitions * + {}, whether a repeated group repeats inside or offers alternatives)."""
    count, nested = 0, False
    open_groups: list[bool] = []
    closed = False  # the group that has just been closed repeats inside
    i, in_class = 0, False
    while i < len(text):
        char = text[i]
        after_group, closed = closed, False
        if char == "\\":
            i += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            i += len(_CLASS_START.match(text, i + 1)[0])  # type: ignore[index]  # matches empty text too
        elif char == "(":
            open_groups.append(False)
        elif char == ")" and open_groups:
            closed = open_groups.pop()
            if open_groups and closed:
                open_groups[-1] = True
        elif char == "|" and open_groups:
            open_groups[-1] = True
        elif char in "*+{":
            count += 1
            nested = nested or after_group
            open_groups = [True for _ in open_groups]
        i += 1
    return count, nested
