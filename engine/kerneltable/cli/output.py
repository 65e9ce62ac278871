"""Writing answers and errors: JSON on stdout, colour on a terminal only, findings with their source line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from kerneltable.errors import ConfigError, KernelTableError, NoKernelError

STYLES = {"chosen": "32", "later": "2", "refused": "33", "error": "31", "warning": "33", "note": "36"}


def print_json(answer: dict[str, Any]) -> None:
    """One JSON object on stdout; its first key is "format"."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))


def print_lines(lines: Iterable[str]) -> None:
    """Lines of an answer on stdout."""
    for line in lines:
        print(line)


def wants_colour(stream: TextIO) -> bool:
    """NO_COLOR beats FORCE_COLOR; without either, colour only on a terminal that can show it."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def painted(line: str, word: str, stream: TextIO) -> str:
    """The line with its first `word` in the colour of that word, when the stream wants colour."""
    if word not in STYLES or not wants_colour(stream):
        return line
    return line.replace(word, f"\033[{STYLES[word]}m{word}\033[0m", 1)


def print_error(error: KernelTableError) -> int:
    """An error on stderr, findings with their source lines; returns the exit code, 1 for no kernel and 2 otherwise."""
    if isinstance(error, ConfigError):
        from kerneltable.cli.findings import finding_lines

        for line in finding_lines(error.findings, sys.stderr):
            print(line, file=sys.stderr)
        return 2
    print(f"kerneltable: {error}", file=sys.stderr)
    return 1 if isinstance(error, NoKernelError) else 2
