"""Files to text: opened once and safely, bounded, with every character checked before YAML sees it."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from kerneltable.model import Layer, Mark
from kerneltable.table.report import Report, shown

LARGEST_FILE = 256 * 1024
"""Bytes. The shipped table has 35 KiB for 30 kernels; 200 would take about 190."""

MOST_CHARACTERS = 20
"""Findings about characters in one file; a binary file would have thousands."""

_FORBIDDEN = re.compile(
    "[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\uffff\U000e0000-\U000e0fff]|\r(?!\n)"
)
_DIRECTIVE = re.compile(r"^%.*$", re.MULTILINE)
_VERSION = re.compile(r"%YAML 1\.[12] *(#.*)?\r?")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or a text given by name, before it is read. text is None when it cannot be used."""

    layer: Layer
    text: str | None


def character_in(text: str) -> str | None:
    """The name of the first character that no table may hold, or None."""
    found = _FORBIDDEN.search(text) if not (text.isascii() and text.isprintable()) else None
    return None if found is None else _named(found.group()[0])


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "")
    known = {"\x00": "NUL", "\x09": "tab", "\r": "carriage return", "\x85": "next line", "\ufeff": "byte order mark"}
    return f"{code} ({known.get(character) or name.lower() or 'no printable character'})"


def from_text(name: str, text: str, report: Report) -> Source:
    """A text that the caller holds, under the name that its marks will show."""
    return _source(name, text.encode("utf-8", "surrogatepass"), report)


def from_file(path: str | os.PathLike[str], report: Report, *, strict: bool) -> Source:
    """Read a file through one descriptor: a regular file of bounded size.

    strict  also refuse a file that another user could have written (overrides: they change which code runs)
    """
    name = os.fspath(path)
    data = _read(name, report, strict=strict)
    return Source(Layer(name, "", ""), None) if data is None else _source(name, data, report)


def from_shipped(name: str, data: bytes, report: Report) -> Source:
    """The table that comes with the package; it may live in a zip file."""
    return _source(name, data, report)


def _source(name: str, data: bytes, report: Report) -> Source:
    text = _decode(name, data, report)
    return Source(Layer(name, sha256(data).hexdigest(), text or ""), text)


def _read(name: str, report: Report, *, strict: bool) -> bytes | None:
    """The bytes of a regular file, or None with a finding. Opened once; every check is made on that descriptor."""
    at = Mark(name if name.isprintable() else shown(name), 1, 1)
    try:
        # not blocking: opening a FIFO returns at once. A symbolic link is followed: mounted configuration is made
        # of links, and what counts is the file that is read.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
        descriptor = os.open(name, flags)
    except (OSError, ValueError) as error:
        report.add("KT121", f"cannot open it: {_reason(error)}", at, help="check the path and its permissions")
        return None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            report.add("KT121", f"it is {_kind(facts.st_mode)}, not a file", at, help="give the path of a YAML file")
            return None
        if strict and not _trusted(name, facts, report, at):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return _bounded(file.read(LARGEST_FILE + 1), facts.st_size, report, at)
    except OSError as error:
        report.add("KT121", f"cannot read it: {_reason(error)}", at, help="check the file")
        return None
    finally:
        os.close(descriptor)


def _bounded(data: bytes, size: int, report: Report, at: Mark) -> bytes | None:
    if max(len(data), size) <= LARGEST_FILE:
        return data
    message = f"it has {max(len(data), size)} bytes; at most {LARGEST_FILE} are read"
    report.add("KT102", message, at, help="a table of this size is a mistake; split the overrides")
    return None


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or "the path is not valid").lower()


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((word for test, word in kinds if test(mode)), "a device")


def _trusted(name: str, facts: os.stat_result, report: Report, at: Mark) -> bool:
    """True when only this user and root can have written the file."""
    who = getattr(os, "geteuid", None)
    if who is None:  # no such owners here
        return True
    if facts.st_uid not in (0, who()):
        message = f"it belongs to user {facts.st_uid}, who is neither you ({who()}) nor root"
        report.add("KT122", message, at, help="an override decides which code runs: use a copy that you own")
        return False
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = f"others can write it (mode {stat.S_IMODE(facts.st_mode):04o})"
        report.add("KT122", message, at, help=f"chmod go-w {shown(name)}, or give --allow-insecure-permissions")
        return False
    folder = os.stat(Path(os.path.realpath(name)).parent)
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        report.add("KT122", "everybody can replace it: its folder is writable for all", at, help="chmod o-w the folder")
        return False
    return True


def _decode(name: str, data: bytes, report: Report) -> str | None:
    """UTF-8 bytes to text with only characters that every YAML reader treats alike."""
    if len(data) > LARGEST_FILE:
        _bounded(data, len(data), report, Mark(name, 1, 1))
        return None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 1 and 0 in data[:2] and any(data[:2])):
        report.add("KT103", "the file is UTF-16 or UTF-32", Mark(name, 1, 1), help="save it as UTF-8")
        return None
    try:
        text = data.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        at = _place(name, before, len(before))
        report.add("KT103", f"byte 0x{data[error.start]:02x} is not UTF-8", at, help="save the file as UTF-8")
        return None
    return text if _lexical(name, text, report) else None


def _place(name: str, text: str, index: int) -> Mark:
    line_start = text.rfind("\n", 0, index) + 1
    return Mark(name, text.count("\n", 0, index) + 1, index - line_start + 1)


def _lexical(name: str, text: str, report: Report) -> bool:
    """Refuse characters and directives on which YAML readers disagree; all of them are named."""
    good = True
    for found in islice(_FORBIDDEN.finditer(text), MOST_CHARACTERS):
        at = _place(name, text, found.start())
        good = False
        if found.group() == "\t":
            report.add("KT106", "a tab", at, help="indent and separate with spaces")
        else:
            help = "take it out, or write the character that was meant"
            report.add("KT105", f"the character {_named(found.group()[0])}", at, help=help)
    for found in islice(_DIRECTIVE.finditer(text), MOST_CHARACTERS):
        if _VERSION.fullmatch(found.group()) is None:
            good = False
            at = _place(name, text, found.start())
            report.add("KT112", f"the directive {shown(found.group().rstrip())}", at, help="take the line out")
    return good
