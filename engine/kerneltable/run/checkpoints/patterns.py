"""Which layers a quantization config means: exact names, "re:" expressions, the class Linear, and globs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex

from kerneltable.errors import CheckpointError

LONGEST = 512
"""Characters that an expression or name of a config may have; real ones stay below 100."""

SECONDS = 20.0
"""That the entries of one list may take for the names of all layers together; real ones take a microsecond a name."""

MOST_COUNTED = 10_000
"""What the counts of one expression, as in a{3}, may multiply to: each copy is compiled."""

CLASS = "Linear"

_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


@dataclass(frozen=True, slots=True)
class Patterns:
    """A list of targets or of ignored layers, ready to be asked about a layer's name.

    names        exact layer names
    expressions  (text, compiled), matched from the start of the name, as the compressed-tensors library does
    all_linear   the list names the class "Linear"
    where        the place in the config
    """

    names: frozenset[str]
    expressions: tuple[tuple[str, regex.Pattern[str]], ...]
    all_linear: bool
    where: str
    _left: list[float] = field(default_factory=lambda: [SECONDS], compare=False)

    def named_by(self, layer: str) -> str | None:
        """The entry that names this layer, as a name or an expression; None if none does ("Linear" does not count).

        errors   CheckpointError when the list has taken SECONDS
        """
        if layer in self.names:
            return layer
        start = time.perf_counter()
        text = ""
        try:
            for text, expression in self.expressions:
                if expression.match(layer, timeout=max(self._left[0], 0.001)):
                    return text
        except TimeoutError:
            raise CheckpointError(
                f"{self.where}: {text!r} matches names such as {layer[:100]!r} too slowly: after {SECONDS:g} s not all "
                "were done; write it without repetitions of what repeats or offers alternatives"
            ) from None
        finally:
            self._left[0] -= time.perf_counter() - start
        return None

    def is_exact(self, layer: str) -> bool:
        """True when the layer's own name is in the list."""
        return layer in self.names

    def container_of(self, layer: str) -> str | None:
        """The entry that names a module around this layer; None if none does."""
        parts = layer.split(".")
        return next((p for p in (".".join(parts[:i]) for i in range(1, len(parts))) if p in self.names), None)


def read_patterns(entries: Iterable[object], where: str) -> Patterns:
    """Entries of compressed-tensors: "re:..." is an expression, "Linear" the class, anything else a name.

    errors   CheckpointError: not text, too long, or an expression that does not compile
    """
    names: set[str] = set()
    expressions: list[tuple[str, regex.Pattern[str]]] = []
    all_linear = False
    for entry in entries:
        text = _checked(entry, where)
        if text.startswith("re:"):
            expressions.append((text, compile_expression(text[3:], where)))
        elif text == CLASS:
            all_linear = True
        else:
            names.add(text)
    return Patterns(frozenset(names), tuple(expressions), all_linear, where)


def read_globs(entries: Iterable[object], where: str) -> Patterns:
    """Entries of Hugging Face FP8 and ModelOpt: a name stands for itself, for what is inside it, and for each module
    whose last parts it is; "*" stands for any characters, and a dot for a dot.

    errors   CheckpointError: not text, too long, or an expression that does not compile
    """
    expressions: list[tuple[str, regex.Pattern[str]]] = []
    for entry in entries:
        text = _checked(entry, where)
        if text.startswith("re:"):
            expressions.append((text, compile_expression(text[3:], where)))
            continue
        pieces = [re.escape(piece) for piece in re.sub(r"\*+", "*", text).split("*")]
        expressions.append((text, regex.compile(rf"(?:.*\.)?{'.*'.join(pieces)}(?:\..*)?\Z")))
    return Patterns(frozenset(), tuple(expressions), False, where)


def compile_expression(text: str, where: str) -> regex.Pattern[str]:
    """Compile an expression of a config.

    errors   CheckpointError: does not compile, or its counts multiply to more than MOST_COUNTED
    """
    try:
        re.compile(text)  # what its writers' library takes; matching needs a limit of time
        counts = [int(most or least or 1) for least, most in _COUNTS.findall(text)]
        if math.prod(counts) > MOST_COUNTED:
            raise CheckpointError(
                f"{where}: expression {text!r} repeats parts {' x '.join(map(str, counts))} times; at most "
                f"{MOST_COUNTED} are taken; write + or *"
            )
        return regex.compile(text)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: expression {text!r} does not compile: {error}; correct it") from None


def _checked(entry: object, where: str) -> str:
    if not isinstance(entry, str) or not entry:
        raise CheckpointError(f"{where}: a layer pattern must be text; found {str(entry)[:80]!r}")
    if len(entry) > LONGEST:
        raise CheckpointError(
            f"{where}: a layer pattern may have {LONGEST} characters; {entry[:40]!r}... has {len(entry)}"
        )
    return entry
