"""Colour on a terminal only: NO_COLOR beats FORCE_COLOR."""

from __future__ import annotations

import os
from typing import TextIO

STYLES = {"chosen": "32", "later": "2", "refused": "33", "error": "31", "warning": "33", "note": "36"}


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
