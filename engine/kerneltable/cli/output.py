"""Writing answers and errors: JSON on stdout, findings with their source line on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from kerneltable.errors import ConfigError, KernelTableError, NoKernelError


def print_json(answer: dict[str, Any]) -> None:
    """One JSON object on stdout; its first key is "format"."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))


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
