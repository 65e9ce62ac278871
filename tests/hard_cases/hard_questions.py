"""What the hard cases ask: the small table with one change, and what every refusal must look like."""

from __future__ import annotations

import time
from pathlib import Path

from kerneltable.errors import Finding
from kerneltable.model import Table
from kerneltable.table.load import read
from kerneltable.table.nodes import loaders
from kerneltable.table.render import render

TABLES = Path(__file__).parents[1] / "data" / "tables"
SMALL_FILE = TABLES / "good" / "small.yaml"
SMALL = SMALL_FILE.read_text(encoding="utf-8")
FOREIGN = ("Traceback", "is not valid under", "is not of type", "did not match", "while parsing", "<unicode string>")


def changed(old: str, new: str, text: str = SMALL) -> str:
    """The small table with one text replaced once."""
    assert old in text, old
    return text.replace(old, new, 1)


def ask(folder: Path, table: str | bytes | None, *overrides: str, **more: object) -> tuple[Table | None, list[str]]:
    """Read a table (None: the small one) with override texts, by every YAML reader there is.

    They must agree on taking it; where a text is no YAML, they may stop at different places.
    returns  the table, or None, and the codes of the findings; each of them is worded by us and has a place
    """
    path = SMALL_FILE
    if table is not None:
        path = folder / "table.yaml"
        path.write_bytes(table if isinstance(table, bytes) else table.encode("utf-8", "surrogatepass"))
    named = [(f"{chr(97 + place)}.yaml", text) for place, text in enumerate(overrides)]
    answers = [read(path, named, loader=loader, **more) for loader in loaders()]  # type: ignore[arg-type]
    assert len({made is None for made, _ in answers}) == 1, answers
    for made, findings in answers:
        for finding in findings:
            well_worded(finding)
        assert (made is None) == any(finding.severity == "error" for finding in findings)
    made, findings = answers[0]
    return made, [finding.code for finding in findings]


def findings_of(folder: Path, table: str, *overrides: str) -> tuple[Finding, ...]:
    """The findings of one reading, for tests that look at words and places."""
    path = folder / "table.yaml"
    path.write_text(table, encoding="utf-8")
    return read(path, [(f"{chr(97 + place)}.yaml", text) for place, text in enumerate(overrides)])[1]


def well_worded(finding: Finding) -> None:
    """A finding names a file, a line and a column, in printable words of our own."""
    assert finding.mark.line >= 1
    assert finding.mark.column >= 1
    assert finding.message
    text = "\n".join(render(finding))
    assert all(line.isprintable() for line in text.split("\n"))
    assert not [word for word in FOREIGN if word in text]


class Within:
    """A with-block that must not take more processor time than said; attacks take minutes where this fails."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.start = time.process_time()

    def __exit__(self, *error: object) -> None:
        taken = time.process_time() - self.start
        assert error[0] is not None or taken < self.seconds, f"{taken:.2f} s"
