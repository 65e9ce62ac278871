"""Findings for machines: SARIF 2.1.0 for code scanning, JUnit for GitLab and Jenkins, GitHub's step summary."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from kerneltable.cli.findings import LEVELS, count_text, worst_first
from kerneltable.errors import Finding

MOST_RESULTS = 5000
"""GitHub takes 25 000 results of one run and shows the first 5 000."""
LARGEST_SUMMARY = 1 << 20
"""GitHub drops a step summary of more than 1 MiB as a whole."""


def sarif(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings, the worst first, as a SARIF 2.1.0 log with the rules that they name."""
    from kerneltable import __version__
    from kerneltable.table.rules import rules

    shown = worst_first(findings)[:MOST_RESULTS]
    known = rules()
    described = [
        {
            "id": code,
            "shortDescription": {"text": known[code].title},
            "fullDescription": {"text": known[code].text},
            "help": {"text": known[code].fix},
            "defaultConfiguration": {"level": LEVELS[known[code].severity]},
        }
        for code in sorted({finding.code for finding in shown})
        if code in known
    ]
    seen: Counter[str] = Counter()
    results = [_result(finding, seen) for finding in shown]
    driver = {"name": "kerneltable", "version": __version__, "rules": described}
    run: dict[str, Any] = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    if len(shown) < len(findings):
        run["properties"] = {"findingsNotShown": len(findings) - len(shown)}
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _result(finding: Finding, seen: Counter[str]) -> dict[str, Any]:
    mark = finding.mark
    region = {"startLine": mark.line, "startColumn": mark.column, "endColumn": mark.column + finding.length}
    uri = _uri(mark.file)
    print_ = sha256("\0".join((finding.code, uri, finding.path, finding.message)).encode()).hexdigest()[:32]
    seen[print_] += 1
    return {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": _text(finding)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}],
        "partialFingerprints": {"kerneltable/v1": f"{print_}:{seen[print_]}"},
    }


def _uri(file: str) -> str:
    """A path relative to the working directory, which is the repository's root in CI; else as it is."""
    try:
        path = Path(file).relative_to(Path.cwd()) if Path(file).is_absolute() else Path(file)
    except ValueError:
        path = Path(file)
    return quote(path.as_posix(), errors="surrogateescape")


def _text(finding: Finding) -> str:
    parts = (finding.message, finding.help, finding.witness and f"see: {finding.witness}")
    return "; ".join(part for part in parts if part)


def junit(name: str, findings: Sequence[Finding]) -> str:
    """A JUnit file: errors and warnings are failures, notes are passed with their text; one passed test when clean."""
    failed = sum(finding.severity != "note" for finding in findings)
    suite = f'name="kerneltable check" tests="{len(findings) or 1}" failures="{failed}" errors="0"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", f"  <testsuite {suite}>"]
    if not findings:
        lines.append(f"    <testcase classname={quoteattr(_xml(name))} name={quoteattr('no findings')}/>")
    for finding in worst_first(findings):
        place = f"{finding.mark} {finding.code}"
        head = f"classname={quoteattr(_xml(finding.mark.file))} name={quoteattr(_xml(place))}"
        message, text = quoteattr(_xml(finding.message)), escape(_xml(f"{place}: {_text(finding)}"))
        if finding.severity == "note":
            lines.append(f"    <testcase {head}><system-out>{text}</system-out></testcase>")
        else:
            body = f"<failure type={quoteattr(finding.severity)} message={message}>{text}</failure>"
            lines.append(f"    <testcase {head}>{body}</testcase>")
    return "\n".join([*lines, "  </testsuite>", "</testsuites>"])


def _xml(text: str) -> str:
    """Characters that XML cannot hold become question marks."""
    return "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "?" for c in text)


def write_step_summary(name: str, findings: Sequence[Finding]) -> None:
    """Append a table of all findings to the summary of this GitHub step, when there is such a file."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        return
    lines = [f"### kerneltable check: {count_text(findings)}", "", f"`{name}`", ""]
    if findings:
        lines += ["| | code | place | finding |", "|---|---|---|---|"]
    size = len("\n".join(lines).encode(errors="backslashreplace"))
    for finding in worst_first(findings):
        line = f"| {finding.severity} | {finding.code} | `{finding.mark}` | {_cell(_text(finding))} |"
        size += len(line.encode(errors="backslashreplace")) + 1
        if size > LARGEST_SUMMARY - 1000:
            lines.append("| | | | more findings are not shown; run `kerneltable check` |")
            break
        lines.append(line)
    with Path(target).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(lines) + "\n\n")


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it ends the cell or becomes a tag."""
    plain = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return plain.replace("<", "&lt;").replace(">", "&gt;")
