"""Findings for machines: limits of GitHub, SARIF, JUnit, step summary, baselines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import Ask, override

from kerneltable.cli.findings import github_lines
from kerneltable.cli.reports import LARGEST_SUMMARY, MOST_RESULTS, junit, sarif, write_step_summary
from kerneltable.errors import Finding
from kerneltable.model import Mark

WARNS = 'override: 1\ndisable:\n  - {kernel: triton_w8a16, reason: "slow", until: "2020-01-01"}\n'


def findings(severity: str, count: int, message: str = "x") -> list[Finding]:
    return [Finding("KT405", severity, f"{message} {i}", Mark("a.yaml", i + 1, 1)) for i in range(count)]


def test_github_gets_at_most_ten_of_each_kind_and_the_number_of_the_rest() -> None:
    lines = list(github_lines([*findings("note", 30), *findings("warning", 30), *findings("error", 30)]))
    assert Counter(line.split()[0] for line in lines) == {"::error": 10, "::warning": 10, "::notice": 10}
    assert lines[0].startswith("::error")
    assert lines[-1] == "::notice title=kerneltable::61 more findings; run `kerneltable check`"


def test_github_gets_no_last_notice_when_everything_is_shown() -> None:
    assert len(list(github_lines([*findings("error", 10), *findings("note", 9)]))) == 19


def test_text_for_github_is_escaped() -> None:
    (line,) = github_lines([Finding("KT405", "error", "100%\r\n::error::x", Mark("a,b:c.yaml", 1, 1))])
    assert line == "::error file=a%2Cb%3Ac.yaml,line=1,col=1,endColumn=2,title=KT405::100%25%0D%0A::error::x"


def test_a_step_summary_is_appended_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    write_step_summary("dispatch.yaml", findings("error", 3, "a | b <img src=x>"))
    text = file.read_text()
    assert text.startswith("before\n### kerneltable check: 3 errors\n")
    assert text.count("a \\| b &lt;img src=x&gt;") == 3
    file.unlink()
    write_step_summary("dispatch.yaml", findings("error", 2000, "long " * 200))
    assert LARGEST_SUMMARY - 5000 < file.stat().st_size <= LARGEST_SUMMARY
    assert "more findings are not shown" in file.read_text()


def test_without_a_summary_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_step_summary("dispatch.yaml", findings("error", 3))
    assert list(tmp_path.iterdir()) == []


def test_sarif_has_stable_fingerprints_relative_paths_and_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    one = Finding("KT405", "warning", "x", Mark(str(tmp_path / "deploy" / "a b.yaml"), 3, 5), "routes", 4)
    moved = Finding("KT405", "warning", "x", Mark("deploy/a b.yaml", 30, 5), "routes", 4)
    (first, second) = (sarif([finding])["runs"][0]["results"][0] for finding in (one, moved))
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "deploy/a%20b.yaml"
    assert first["partialFingerprints"] == second["partialFingerprints"]
    prints = [r["partialFingerprints"]["kerneltable/v1"] for r in sarif([one, one])["runs"][0]["results"]]
    assert len(set(prints)) == 2
    run = sarif(findings("note", MOST_RESULTS + 7) + findings("error", 1))["runs"][0]
    assert len(run["results"]) == MOST_RESULTS
    assert run["results"][0]["level"] == "error"
    assert run["properties"] == {"findingsNotShown": 8}


def test_junit_counts_failures_and_holds_any_text(ask: Ask, tmp_path: Path) -> None:
    evil = '</failure> & "x" \x00\x1b \ud800'
    root = ElementTree.fromstring(junit("a.yaml", [*findings("error", 2, evil), *findings("note", 1)]))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    failure = suite[0].find("failure")
    assert failure is not None
    assert failure.get("message") == '</failure> & "x" ?? ? 0'
    assert [case.find("failure") is None for case in suite] == [False, False, True]
    assert ElementTree.fromstring(ask("check", "--format", "junit").out)[0].get("failures") == "0"
    answer = ask("check", "--format", "junit", "-f", override(tmp_path, WARNS))
    assert ElementTree.fromstring(answer.out)[0].get("failures") == "1"


def baseline(ask: Ask, folder: Path, *argv: str) -> Path:
    file = folder / "baseline.json"
    file.write_text(ask("check", "--format", "json", *argv).out)
    return file


def test_what_a_baseline_knows_does_not_block(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, WARNS)
    known = baseline(ask, tmp_path, "-f", file)
    answer = ask("check", "-f", file, "--fail-on-warn", "--baseline", known)
    assert (answer.code, answer.out.endswith("no findings, 1 in the baseline\n")) == (0, True)
    assert ask("check", "-f", file, "--fail-on-warn").code == 1


def test_a_known_finding_on_another_line_stays_known_and_a_new_one_blocks(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, WARNS)
    known = baseline(ask, tmp_path, "-f", file)
    override(tmp_path, WARNS.replace("disable:", "\n\ndisable:"))
    assert ask("check", "-f", file, "--fail-on-warn", "--baseline", known).code == 0
    override(tmp_path, WARNS + '  - {kernel: mma_fp8_block, reason: "slow", until: "2020-01-01"}\n')
    answer = ask("check", "-f", file, "--fail-on-warn", "--baseline", known)
    assert (answer.code, answer.out.count("warning[")) == (1, 1)
    found = ask("check", "-f", file, "--baseline", known, "--format", "json").json
    assert (len(found["findings"]), len(found["known"])) == (1, 1)
    again = tmp_path / "again.json"
    again.write_text(json.dumps(found))
    assert ask("check", "-f", file, "--fail-on-warn", "--baseline", again).code == 0


def test_an_error_that_makes_the_table_unusable_is_never_known(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, "override: 1\ndisable: [{kernel: nothing, reason: x}]\n")
    known = baseline(ask, tmp_path, "-f", file)
    assert ask("check", "-f", file, "--baseline", known).code == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": 1}', '{"findings": [{}]}', '{"findings": [1]}'])
def test_what_is_no_baseline_is_exit_2(ask: Ask, tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    answer = ask("check", "--baseline", file)
    assert (answer.code, answer.out) == (2, "")
    assert "this is no baseline" in answer.err
