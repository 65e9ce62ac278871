"""`check`: findings in every format, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Answer, Ask, override

from kerneltable.table import load_table


def test_check_of_the_shipped_table_is_clean(ask: Ask) -> None:
    table = load_table()
    chips = sum(len(platform.architectures) for platform in table.platforms.values())
    counts = f"{len(table.kernels)} kernels, {len(table.routes)} routes, {chips} architectures"
    assert ask("check") == Answer(0, f"dispatch.yaml: {counts}: no findings\n", "")


def test_check_finds_a_wrong_name_and_says_where(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, 'override: 1\ndisable: [{kernel: triton_w8a61, reason: "slow"}]\n')
    answer = ask("check", "-f", file)
    assert (answer.code, answer.err) == (1, "")
    assert f"{file}:2:20: error[KT" in answer.out
    assert "did you mean 'triton_w8a16'?" in answer.out
    assert answer.out.splitlines()[-1] == f"dispatch.yaml + {file}: not usable: 1 error"
    found = ask("check", "-f", file, "--format", "json").json
    assert [(f["severity"], f["file"], f["line"], f["column"]) for f in found["findings"]] == [("error", file, 2, 20)]


def test_check_of_a_good_override_is_clean_and_names_both_files(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, "override: 1\nroutes: {fp8_block_w8a8: {cuda: {order: {prepend: [triton_fp8_block]}}}}\n")
    answer = ask("check", "-f", file)
    assert answer.code == 0
    assert answer.out.startswith(f"dispatch.yaml + {file}: ")
    assert [x["name"] for x in ask("check", "-f", file, "--format", "json").json["summary"]["layers"]][1] == file


def test_warnings_fail_only_on_request(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, 'override: 1\ndisable: [{kernel: triton_w8a16, reason: "slow", until: "2020-01-01"}]\n')
    answer = ask("check", "-f", file)
    assert (answer.code, "1 warning" in answer.out) == (0, True)
    assert ask("check", "-f", file, "--fail-on-warn").code == 1


def test_what_an_override_takes_away_is_one_warning_at_its_own_line(ask: Ask, tmp_path: Path) -> None:
    text = "override: 1\nroutes:\n  mxfp8: {cuda: {require: triton_mxfp8_w8a16}}\n"
    file = override(tmp_path, text + 'disable: [{kernel: reference, reason: "never", platform: rocm}]\n')
    found = ask("check", "-f", file, "--format", "json").json["findings"]
    places = [(f["code"], f["file"], f["line"], f["column"], f["path"]) for f in found]
    assert places == [
        ("KT504", file, 3, 27, "routes.mxfp8.cuda.require"),
        ("KT504", file, 4, 20, "disable[0].kernel"),
    ]
    assert ask("check", "-f", file, "--fail-on-warn").code == 1


@pytest.mark.parametrize("argv", [("--kernel", "nope"), ("--quarantine", "q"), ("--canary-seconds", "3")])
def test_options_of_canaries_without_canaries_are_refused(ask: Ask, argv: tuple[str, ...]) -> None:
    answer = ask("check", *argv)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"kerneltable: check {argv[0]}: it says how kernels are run, and none is; add --canary, or leave it out\n"
    )


@pytest.mark.parametrize("argv", [("missing.yaml",), ("-f", "missing.yaml")])
def test_a_file_that_cannot_be_read_is_no_answer(ask: Ask, argv: tuple[str, ...]) -> None:
    answer = ask("check", *argv)
    assert answer.code == 2
    assert "missing.yaml:1:1: error[KT121]" in answer.out


def test_check_writes_github_commands(ask: Ask, tmp_path: Path) -> None:
    names = ", ".join(f'{{kernel: "k{i}", reason: "100% odd: a,b"}}' for i in range(12))
    file = override(tmp_path, f"override: 1\ndisable: [{names}]\n")
    answer = ask("check", "-f", file, "--format", "github")
    lines = answer.out.splitlines()
    assert answer.code == 1
    assert len(lines) == 11
    assert lines[0].startswith(f"::error file={file},line=2,col=20,endColumn=")
    assert lines[-1] == "::notice title=kerneltable::2 more findings; run `kerneltable check`"
    assert ask("check", "--format", "github") == Answer(0, "", "")


def test_check_writes_sarif(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, 'override: 1\ndisable: [{kernel: nothing, reason: "x"}]\n')
    found = ask("check", "-f", file, "--format", "sarif").json
    (result,) = found["runs"][0]["results"]
    (rule,) = found["runs"][0]["tool"]["driver"]["rules"]
    assert found["version"] == "2.1.0"
    assert (result["ruleId"], result["level"]) == (rule["id"], "error")
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 2
