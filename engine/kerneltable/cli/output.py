"""Writing answers and errors: JSON on stdout, findings with their source line on stderr."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kerneltable.errors import ConfigError, KernelTableError, NoKernelError, ProblemError


def print_json(answer: dict[str, Any]) -> None:
    """One JSON object on stdout, in ASCII whatever a file is called; its first key is "format"."""
    print(json.dumps(answer, indent=2))


def replace_json(name: str, answer: dict[str, Any]) -> None:
    """One JSON object as a file, whole or not at all: who reads it meanwhile, or after an end by force, finds the last.

    name      the file, or a link to it, which stays; a pipe or a device is written to as it is
    errors    ProblemError for no name and for a folder, else OSError that names the file
    """
    if not name:
        raise ProblemError("--out: wanted the name of a file; found an empty one; name a file, or leave --out away")
    text = json.dumps(answer, indent=2) + "\n"
    try:
        kind = stat.S_IFMT(os.stat(name).st_mode)
    except FileNotFoundError:
        kind = stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise ProblemError(f"--out {name}: wanted a file; found a folder; name a file in it")
    try:
        _replace(Path(os.path.realpath(name)), text) if kind == stat.S_IFREG else _write_into(name, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def _replace(path: Path, text: str) -> None:
    """Write a file beside one, then put it in its place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):  # its folder may not be there either
            beside.unlink(missing_ok=True)
        raise


def _write_into(name: str, text: str) -> None:
    """Write to what is there and is no regular file."""
    with open(os.open(name, os.O_WRONLY), "w", encoding="utf-8") as there:
        there.write(text)


def write_text(path: str, text: str) -> None:
    """The answer as the file of --out; a surrogate, as in the name of a file that is no UTF-8, becomes an escape.

    errors    OSError that names the file
    """
    try:
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def print_lines(lines: Iterable[str]) -> None:
    """Lines of an answer on stdout."""
    for line in lines:
        print(line)


def print_error(error: KernelTableError) -> int:
    """An error on stderr, findings with their source lines; returns the exit code, 1 for no kernel and 2 otherwise."""
    if isinstance(error, ConfigError):
        from kerneltable.cli.findings import finding_lines

        for line in finding_lines(error.findings, sys.stderr):
            print(line, file=sys.stderr)
        return 2
    print(f"kerneltable: {error}", file=sys.stderr)
    return 1 if isinstance(error, NoKernelError) else 2
