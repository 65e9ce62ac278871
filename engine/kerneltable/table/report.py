"""Collecting findings: what is wrong, where, and the next step. Nothing here reads a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from difflib import get_close_matches

from kerneltable.errors import Finding
from kerneltable.model import Mark
from kerneltable.table.rules import rules

Path = tuple[str | int, ...]
MOST_FINDINGS = 200
"""A broken file may hold thousands of mistakes; a person reads the first ones."""
ENOUGH = 2 * MOST_FINDINGS
"""Where a reading stops looking for more."""


@dataclass(slots=True)
class Report:
    """The findings of one reading. `today` decides which end dates have passed; layers are the files, lowest first."""

    today: date = field(default_factory=date.today)
    findings: list[Finding] = field(default_factory=list)
    layers: tuple[str, ...] = ()

    def rank(self, mark: Mark) -> int:
        """How late the layer of a place is: of two values that contradict each other, the later one caused it."""
        return self.layers.index(mark.file) if mark.file in self.layers else -1

    def add(self, code: str, message: str, mark: Mark, *, path: Path = (), length: int = 1, help: str = "") -> None:
        """Note one finding; its severity is the one that the rule states."""
        severity = rules()[code].severity
        self.findings.append(Finding(code, severity, message, mark, dotted(path), max(1, length), help))

    @property
    def failed(self) -> bool:
        """True when something noted makes the files unusable."""
        return any(f.severity == "error" for f in self.findings)

    def finish(self, texts: Mapping[str, str]) -> tuple[Finding, ...]:
        """All findings, each once, sorted by file, line and column, with the source line that they speak of.

        A value of a wrong shape is not looked up as well: one mistake, one finding.
        Files sort in the order of texts: the table first, then the overrides as they were given.
        """
        order = {name: place for place, name in enumerate(texts)}
        lines = {name: text.removeprefix("\ufeff").split("\n") for name, text in texts.items()}
        shape = {f.mark for f in self.findings if f.code < "KT3" and f.severity == "error"}
        found = sorted(
            dict.fromkeys(f for f in self.findings if f.code < "KT3" or f.mark not in shape),
            key=lambda f: (order.get(f.mark.file, -1), f.mark.line, f.mark.column, f.code, f.message),
        )
        if len(found) > MOST_FINDINGS:
            rest = len(found) - MOST_FINDINGS
            last = found[MOST_FINDINGS]
            more = Finding("KT125", "note", f"{rest} more findings are not shown", last.mark, last.path)
            found = [*_worst_first(found), more]
        return tuple(replace(f, line_text=_line(lines.get(f.mark.file, []), f.mark.line)) for f in found)


def _worst_first(found: list[Finding]) -> list[Finding]:
    """The first findings, errors before warnings, so that a cut never hides the last error."""
    kept = sorted(range(len(found)), key=lambda i: (found[i].severity != "error", i))[:MOST_FINDINGS]
    return [found[i] for i in sorted(kept)]


def _line(lines: list[str], number: int) -> str:
    return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""


def dotted(path: Path) -> str:
    """A path as people write it: ("routes", "mxfp8", "cuda", 0) -> routes.mxfp8.cuda[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_part(part)}" if text else _part(part)
    return text


def _part(name: str) -> str:
    return name if name.isascii() and name.isprintable() and len(name) <= 80 else shown(name)


def shown(text: object) -> str:
    """A name from a file, safe to print: quoted, ASCII only, at most 80 characters."""
    full = str(text)
    return ascii(full) if len(full) <= 80 else ascii(full[:77]) + "..."


def listed(names: Iterable[object]) -> str:
    """Names for a message: 'a, b, c', cut after twelve."""
    every = [str(name) for name in names]
    return ", ".join(every[:12]) + (f" and {len(every) - 12} more" if len(every) > 12 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """The next step after an unknown name: the nearest known one, else the list of them."""
    names = sorted(known)
    close = get_close_matches(name[:80].lower(), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {shown(close[0])}?"
    return f"known: {listed(names)}" if names else "none is defined"
