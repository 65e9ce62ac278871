"""Findings in the formats that people and CI read: text, JSON, GitHub commands. See reports.py for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from kerneltable.cli.colour import painted
from kerneltable.errors import Finding

MOST_COMMANDS = 10
"""GitHub shows 10 errors, 10 warnings and 10 notices of one step."""
LEVELS = {"error": "error", "warning": "warning", "note": "note"}


def finding_lines(findings: Sequence[Finding], stream: TextIO) -> Iterator[str]:
    """Each finding with its source line and caret, as text for this stream."""
    from kerneltable.table.render import render

    for finding in findings:
        for line in render(finding):
            yield painted(line, finding.severity, stream)


def count_text(findings: Sequence[Finding]) -> str:
    """ "no findings", or "2 errors, 1 warning"."""
    counts = Counter(finding.severity for finding in findings)
    parts = [f"{counts[word]} {word}{'s' if counts[word] > 1 else ''}" for word in LEVELS if counts[word]]
    return ", ".join(parts) or "no findings"


def finding_json(finding: Finding) -> dict[str, Any]:
    """One finding as JSON-able values."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "message": finding.message,
        "file": finding.mark.file,
        "line": finding.mark.line,
        "column": finding.mark.column,
        "path": finding.path,
        "help": finding.help,
        "witness": finding.witness,
    }


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes, each in the order of the files."""
    return sorted(findings, key=lambda finding: list(LEVELS).index(finding.severity))


def github_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Workflow commands, at most MOST_COMMANDS of each kind, then one notice with the number of the rest."""
    shown: Counter[str] = Counter()
    for finding in worst_first(findings):
        command = "notice" if finding.severity == "note" else finding.severity
        if shown[command] >= MOST_COMMANDS - (command == "notice"):  # one notice is kept for the rest
            continue
        shown[command] += 1
        mark = finding.mark
        place = f"file={_property(mark.file)},line={mark.line},col={mark.column}"
        text = finding.message + (f"; {finding.help}" if finding.help else "")
        yield f"::{command} {place},endColumn={mark.column + finding.length},title={finding.code}::{_data(text)}"
    rest = len(findings) - shown.total()
    if rest:
        yield f"::notice title=kerneltable::{rest} more findings; run `kerneltable check`"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
