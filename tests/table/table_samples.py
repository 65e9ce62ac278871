"""The small table, changed in one place: what the tests of reading share."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from kerneltable.errors import Finding
from kerneltable.model import Table
from kerneltable.table.load import read

TABLES = Path(__file__).parent.parent / "data" / "tables"
SMALL = (TABLES / "good" / "small.yaml").read_text()
TODAY = date(2026, 11, 21)


def changed(*replacements: tuple[str, str]) -> str:
    """The small table with each text replaced once; a text that is not there is a mistake of the test."""
    text = SMALL
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def read_text(
    tmp_path: Path, text: str | bytes, *overrides: str, loader: str | None = None
) -> tuple[Table | None, tuple[Finding, ...]]:
    """Read a table's text; overrides are called a.yaml, b.yaml and so on."""
    path = tmp_path / "table.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    named = [(f"{chr(97 + place)}.yaml", override) for place, override in enumerate(overrides)]
    return read(path, named, today=TODAY, loader=loader)


def laid_over(*overrides: str, table: str | None = None) -> tuple[Table | None, tuple[Finding, ...]]:
    """The small table (or a shipped one given by path) with overrides."""
    named = [(f"{chr(97 + place)}.yaml", "override: 1\n" + text) for place, text in enumerate(overrides)]
    return read(table or TABLES / "good" / "small.yaml", named, today=TODAY)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


def order(table: Table | None, scheme: str = "fp8_w8a8", platform: str = "cuda") -> list[str]:
    assert table is not None
    return [step.kernel for step in table.routes[scheme, platform].steps]
