"""What an unquoted scalar means: only readings that YAML 1.1 and YAML 1.2 share are taken.

Editors, CI and engines use different YAML versions. A word that they read differently ("no", 010, 8.10 as a
capability) is refused with the cure, so that they can never disagree about a file.
source: YAML 1.1 type repository (bool, int, float, null, timestamp); YAML 1.2.2 section 10.3, core schema
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_INTEGER = 15
"""Digits of the longest integer taken: every one of them is exact in a float64 too."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_WORDS = frozenset({"yes", "no", "on", "off"})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")
_NUMBER = re.compile(
    r"[-+]?("
    r"0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+"  # other number bases
    r"|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"  # base 60
    r"|([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+)([eE][-+]?[0-9]+)?"  # decimal
    r")"
)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an unquoted scalar is not taken, and the next step."""

    code: str
    message: str
    help: str


def read_plain(text: str) -> str | int | bool | Refused:
    """The one meaning of an unquoted scalar: text, an integer, true or false; else why it has none."""
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return _integer(text)
    return _doubtful(text) or text


def _doubtful(text: str) -> Refused | None:
    """Why readers disagree on this scalar; None when all of them take it as text."""
    if text.lower() in ("true", "false"):
        return Refused("KT114", f"{text} is not how true and false are written here", f"write {text.lower()}")
    if text in _NULLS:
        return Refused("KT116", "there is no value here", "give it a value, or take the key out")
    if text.lower() in _WORDS or text == "=":
        return Refused("KT114", f"{text} without quotes is a YAML 1.1 boolean, and text in YAML 1.2", _choice(text))
    if _NOT_FINITE.fullmatch(text):
        return Refused("KT117", f"{text} is not a finite number", "write a whole number")
    if _TIMESTAMP.fullmatch(text):
        return Refused("KT118", f"{text[:40]} without quotes is a date to some readers, not text", _quote(text))
    if _NUMBER.fullmatch(text):
        return _odd_number(text)
    return None


def _integer(text: str) -> int | Refused:
    if len(text.lstrip("-")) > LONGEST_INTEGER:
        wanted = f"use at most {LONGEST_INTEGER} digits"
        return Refused("KT119", f"the number {text[:20]}... has {len(text)} characters", wanted)
    return int(text)


def _choice(text: str) -> str:
    truth = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
    return f'write {truth}, or "{text}" for the text' if truth else _quote(text)


def _quote(text: str) -> str:
    return f'quote it: "{text[:40]}"'


def _odd_number(text: str) -> Refused:
    """A number in a spelling that readers disagree on, or that drops what was written."""
    if len(text) > 40:
        return Refused("KT119", f"the number {text[:20]}... has {len(text)} characters", "use a whole number")
    try:
        value = float(text)
    except ValueError:
        return Refused("KT115", f"{text} without quotes is not the same number to every reader", _decimal(text))
    if re.search(r"[.eE]", text):
        read = f"{text} without quotes is read as the number {value!r}"
    else:
        read = f"{text} without quotes is not the same number to every reader"
    return Refused("KT115", read, _decimal(text))


def _decimal(text: str) -> str:
    return f'quote it, "{text}", for text (capabilities and versions), or write a whole number like 128'
