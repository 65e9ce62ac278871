"""A finding as lines of text: what and where, the source line, a caret under the value, the next step."""

from __future__ import annotations

from unicodedata import category, east_asian_width

from kerneltable.errors import Finding
from kerneltable.table.report import shown

WIDEST = 120


def render(finding: Finding) -> list[str]:
    """The lines of one finding; no colour, no line longer than the message makes it.

    dispatch.yaml:41:19: error[KT206] kernel 'x': accepts.n.min is out of bounds: at least 1 is taken; found 0
      41 |       n: {min: 0}
         |               ^
    help: ...
    rule: kerneltable rule KT206
    """
    mark = finding.mark
    file = mark.file if mark.file.isprintable() else shown(mark.file)
    lines = [f"{file}:{mark.line}:{mark.column}: {finding.severity}[{finding.code}] {finding.message}"]
    if finding.line_text:
        lines += _excerpt(finding)
    if finding.help:
        lines.append(f"  help: {finding.help}")
    if finding.witness:
        lines.append(f"  see:  {finding.witness}")
    lines.append(f"  rule: kerneltable rule {finding.code}")
    return lines


def _excerpt(finding: Finding) -> list[str]:
    """The source line and its caret; of a long line the part around the caret."""
    number = str(finding.mark.line).rjust(4)
    text = "".join(c if c.isprintable() else "?" for c in finding.line_text)
    start = max(0, finding.mark.column - 1 - WIDEST // 2) if len(text) > WIDEST else 0
    piece = text[start : start + WIDEST]
    before = "..." if start else ""
    column = finding.mark.column - 1 - start
    indent = " " * (len(before) + columns(piece[:column]) + max(0, column - len(piece)))
    carets = "^" * max(1, columns(piece[column : column + finding.length]))
    after = "..." if start + WIDEST < len(text) else ""
    return [f"{number} | {before}{piece}{after}", f"{' ' * len(number)} | {indent}{carets}"]


def columns(text: str) -> int:
    """The columns that a text takes on a terminal: East Asian wide characters two, marks upon another none.

    source   Unicode Standard Annex 11: classes W and F are wide; an ambiguous character counts as narrow
    """
    if text.isascii():
        return len(text)
    marks = ("Mn", "Me", "Cf")
    return sum(0 if category(c) in marks else 2 if east_asian_width(c) in "WF" else 1 for c in text)
