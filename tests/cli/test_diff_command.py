"""`diff` and the proofs of `check` on the command line: formats, devices, exit codes, commands that can be pasted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import Answer, Ask, override

NARROWED = "override: 1\nkernels:\n  triton_fp8_block: {accepts: {n: {multiple_of: 128}, m: {max: 64}}}\n"
HIDING = "override: 1\nroutes: {w8a16_fp8: {rocm: {order: {prepend: [reference]}}}}\n"


@pytest.fixture
def narrowed(tmp_path: Path) -> str:
    return override(tmp_path, NARROWED)


def pasted(ask: Ask, command: str) -> Answer:
    return ask(*shlex.split(command)[1:], "--format", "json")


def test_equal_tables_differ_in_nothing(ask: Ask) -> None:
    assert ask("diff") == Answer(0, "dispatch.yaml -> dispatch.yaml: no changes\n", "")
    assert ask("diff", "--format", "json").json["changes"] == []


def test_a_narrowed_row_shows_its_exact_region_on_the_devices_asked_for(ask: Ask, narrowed: str) -> None:
    answer = ask("diff", "-f", narrowed, "--devices", "rtx-4090,dgx-spark", "--format", "json")
    assert answer.code == 1
    (change,) = answer.json["changes"]
    assert change["devices"] == ["rtx-4090 (sm89)", "dgx-spark (sm121)"]
    assert (change["scheme"], change["change"]) == ("fp8_block_w8a8", "kind")
    assert change["from"] == "triton_fp8_block"
    assert change["differences"]["kind"]["from"] == "native"
    said = {json.dumps(box, sort_keys=True) for box in change["region"]}
    assert said == {
        '{"n": [{"min": 1, "not_multiple_of": [16]}], "weight": ["block 128x128"]}',
        '{"k": [{"min": 1, "not_multiple_of": [16]}], '
        '"n": [{"min": 16, "multiple_of": 16, "not_multiple_of": [128]}], "weight": ["block 128x128"]}',
        '{"k": [{"min": 1, "not_multiple_of": [16]}], "m": [{"min": 65}], "m_unknown": true, '
        '"n": [{"min": 128, "multiple_of": 128}], "weight": ["block 128x128"]}',
    }


def test_the_commands_of_a_change_show_both_sides(ask: Ask, narrowed: str) -> None:
    for change in ask("diff", "-f", narrowed, "--format", "json").json["changes"]:
        for side, kernel in (("before", change["from"]), ("after", change["to"])):
            assert pasted(ask, change["explain"][side]).json["chosen"] == kernel


def test_the_text_names_the_change_loudly_when_a_fast_kernel_is_lost(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, 'override: 1\ndisable: [{kernel: cpu_fp8, reason: "a test"}]\n')
    answer = ask("diff", "-f", file, "--devices", "graviton4")
    first = answer.out.splitlines()[0]
    assert answer.code == 1
    assert first.startswith("SLOWER: ")
    assert "graviton4 (neon): cpu_fp8 (native) -> " in first
    assert answer.out.splitlines()[-1].startswith(f"dispatch.yaml -> dispatch.yaml + {file}: ")


def test_facts_of_a_fleet_are_devices_too(ask: Ask, narrowed: str, tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    facts = {"platform": "cuda", "architecture": "sm89", "name": "node7", "capability": "8.9"}
    (folder / "a.json").write_text(json.dumps({**facts, "packages": {"torch": "2.11.0", "triton": "3.6.0"}}))
    (folder / "b.json").write_text(json.dumps({**facts, "name": "node8", "packages": {"torch": "2.11.0"}}))
    changes = ask("diff", "-f", narrowed, "--facts", folder, "--format", "json").json["changes"]
    assert {name for change in changes for name in change["devices"]} == {"node7 (sm89)"}


def test_an_override_under_the_first_table_is_the_deployment_of_today(ask: Ask, narrowed: str) -> None:
    assert ask("diff", "--base-override", narrowed, "-f", narrowed).code == 0
    (first, *_) = ask("diff", "--base-override", narrowed, "--format", "json").json["changes"]
    assert first["to"] == "triton_fp8_block"


def test_github_and_sarif_point_at_the_step_that_wins_now(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, 'override: 1\ndisable: [{kernel: cpu_fp8, reason: "a test"}]\n')
    lines = ask("diff", "-f", file, "--format", "github").out.splitlines()
    assert all(line.startswith(("::error file=dispatch.yaml,line=", "::notice")) for line in lines)
    results = ask("diff", "-f", file, "--format", "sarif").json["runs"][0]["results"]
    assert {result["ruleId"] for result in results} == {"KT511"}


def test_a_name_that_stands_for_another_chip_now_is_a_change_without_being_asked_for(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, "override: 1\nplatforms: {cuda: {devices: {h200: sm80}}}\n")
    answer = ask("diff", "-f", file, "--format", "json")
    assert answer.code == 1
    assert {tuple(change["devices"]) for change in answer.json["changes"]} == {("cuda:h200 (sm80)",)}
    asked = ask("diff", "-f", file, "--devices", "cuda:h200", "--format", "json").json["changes"]
    assert answer.json["changes"] == asked


def test_an_unknown_device_is_no_answer(ask: Ask) -> None:
    answer = ask("diff", "--devices", "a1000")
    assert (answer.code, answer.out) == (2, "")
    assert "a100" in answer.err


def test_check_proves_that_a_step_is_hidden_and_the_witness_can_be_pasted(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, HIDING)
    answer = ask("check", "-f", file, "--format", "json")
    (finding,) = [f for f in answer.json["findings"] if f["code"] == "KT502"]
    assert (answer.code, finding["severity"]) == (0, "warning")
    shown = pasted(ask, finding["witness"]).json
    assert shown["chosen"] == "reference"
    assert [c["verdict"] for c in shown["candidates"] if c["kernel"] == "triton_w8a16"] == ["later"]
    assert ask("check", "-f", file, "--fail-on-warn").code == 1


def test_notes_are_shown_on_request_alone(ask: Ask) -> None:
    findings = ask("check", "--notes", "--format", "json").json["findings"]
    assert {finding["code"] for finding in findings} == {"KT503", "KT505"}
    assert {finding["severity"] for finding in findings} == {"note"}
    assert ask("check", "--format", "json").json["findings"] == []
    for finding in findings:
        assert pasted(ask, finding["witness"]).code == 0


def erratum_for_some(tmp_path: Path) -> str:
    """The shipped table with one erratum for some models."""
    file = tmp_path / "table.yaml"
    shipped = (Path(__file__).parents[2] / "dispatch.yaml").read_text()
    row = '{deny: hopper_fp8_block, when: {models: ["Qwen/*"], m: {max: 8}}, reason: bad, link: "https://a.b/1"}'
    file.write_text(f"{shipped}errata:\n  - {row}\n")
    return str(file)


def test_an_erratum_for_some_models_is_told_with_commands_that_name_one(ask: Ask, tmp_path: Path) -> None:
    file = erratum_for_some(tmp_path)
    answer = ask("diff", "dispatch.yaml", file, "--devices", "h200")
    assert answer.code == 1
    assert "hopper_fp8_block (native) -> torch_scaled_mm_block (native), for models Qwen/*\n" in answer.out
    for change in ask("diff", "dispatch.yaml", file, "--devices", "h200", "--format", "json").json["changes"]:
        assert change["models"] == ["Qwen/*"]
        for side, kernel in (("before", change["from"]), ("after", change["to"])):
            assert pasted(ask, change["explain"][side]).json["chosen"] == kernel


def test_show_prints_the_models_of_an_erratum(ask: Ask, tmp_path: Path) -> None:
    assert "errata.0.when.models: Qwen/*  " in ask("show", "errata", "--table", erratum_for_some(tmp_path)).out
