"""`lock` and `check --lock`: what was decided stays decided, or is said to have changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Ask, override

from kerneltable.cli.lock import installed
from kerneltable.select.lock import digest_of
from kerneltable.table import load_table

DEVICES = ("--devices", "h200,a100,mi300x")


def locked(ask: Ask, folder: Path, *argv: str) -> Path:
    file = folder / "kernels.lock"
    answer = ask("lock", *DEVICES, "-o", file, *argv)
    digest = json.loads(file.read_text())["digest"]
    assert (answer.code, answer.out, answer.err) == (0, f"{digest}  {file}\n", "")
    return file


def drift(ask: Ask, file: Path, *argv: str) -> set[str]:
    answer = ask("check", "--lock", file, "--format", "json", *argv)
    found = {finding["code"] for finding in answer.json["findings"] if finding["code"] > "KT6"}
    assert answer.code == bool(found)
    return found


def test_a_lock_holds_digests_versions_and_every_decision(ask: Ask, tmp_path: Path) -> None:
    lock = json.loads(locked(ask, tmp_path).read_text())
    table = load_table()
    assert lock["table"]["digest"] == table.digest
    assert lock["packages"] == installed(table)
    assert list(lock["decisions"]) == ["h200", "a100", "mi300x"]
    assert all(set(schemes) == set(table.schemes) for schemes in lock["decisions"].values())
    assert lock["decisions"]["a100"]["w8a16_fp8"][0]["kernel"] == "marlin_w8a16"


def test_what_has_not_changed_passes(ask: Ask, tmp_path: Path) -> None:
    assert drift(ask, locked(ask, tmp_path)) == set()


def test_two_machines_of_one_kind_write_the_same_lock(ask: Ask, tmp_path: Path) -> None:
    texts = []
    for index in (0, 7):
        facts = {
            "platform": "cuda",
            "architecture": "sm90",
            "name": "H200",
            "index": index,
            "memory_gib": 139.8 - index,
        }
        (tmp_path / "facts.json").write_text(json.dumps(facts))
        texts.append(ask("lock", "--facts", tmp_path / "facts.json").out)
    assert texts[0] == texts[1]


def test_another_decision_is_drift(ask: Ask, tmp_path: Path) -> None:
    file = locked(ask, tmp_path)
    text = "override: 1\nroutes: {w8a16_fp8: {cuda: {order: {remove: [triton_w8a16]}}}}\n"
    above = override(tmp_path, text)
    assert drift(ask, file, "-f", above) == {"KT601", "KT602"}
    said = ask("check", "--lock", file, "-f", above).out
    assert "w8a16_fp8 on a100: marlin_w8a16, triton_w8a16, reference then, marlin_w8a16, reference now" in said
    assert "mi300x" not in said
    assert "deploy.yaml changed" in said


def test_another_text_with_the_same_decisions_is_drift_of_the_table_alone(ask: Ask, tmp_path: Path) -> None:
    file = locked(ask, tmp_path)
    above = override(tmp_path, 'override: 1\nkernels: {triton_w8a16: {why: "another reason"}}\n')
    assert drift(ask, file, "-f", above) == {"KT601"}


def test_a_lock_of_overrides_is_held_against_the_same_overrides_wherever_they_lie(ask: Ask, tmp_path: Path) -> None:
    text = "override: 1\nroutes: {mxfp8: {cuda: {prefer: reference}}}\n"
    file = locked(ask, tmp_path, "-f", override(tmp_path, text))
    assert drift(ask, file, "-f", override(tmp_path, text, "renamed.yaml")) == set()
    assert drift(ask, file) == {"KT601", "KT602"}


def test_another_version_of_a_package_is_drift(ask: Ask, tmp_path: Path) -> None:
    file = locked(ask, tmp_path)
    lock = json.loads(file.read_text())
    lock["packages"]["kerneltable"] = "0.0.1"
    file.write_text(json.dumps(lock | {"digest": digest_of(lock)}))
    assert drift(ask, file) == {"KT603"}
    assert "package kerneltable: 0.0.1 is locked; found" in ask("check", "--lock", file).out


def test_versions_can_be_left_open(ask: Ask, tmp_path: Path) -> None:
    assert json.loads(locked(ask, tmp_path, "--no-packages").read_text())["packages"] == {}


def test_a_lock_changed_by_hand_is_refused(ask: Ask, tmp_path: Path) -> None:
    file = locked(ask, tmp_path)
    file.write_text(file.read_text().replace('"architecture": "sm80"', '"architecture": "sm89"'))
    assert {"KT604", "KT602"} <= drift(ask, file)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "\x00", '{"lock": 1}', "[" * 100_000,
    '{"lock": 2, "table": {"digest": "", "layers": []}, "packages": {}, "devices": {}, "decisions": {}}',
    '{"lock": 1, "table": {"digest": "", "layers": [{}]}, "packages": {}, "devices": {}, "decisions": {}}',
    '{"lock": 1, "table": {"digest": "", "layers": []}, "packages": {}, "devices": {"x": {}}, "decisions": {}}',
    '{"lock": 1, "table": {"digest": "", "layers": []}, "packages": {}, "devices": {"x": {}}, "decisions": {"x": []}}',
    '{"lock": 1, "table": {"digest": "", "layers": []}, "packages": {}, "devices": {"x": {}}, "decisions": {"x": 0}}',
])  # fmt: skip
def test_what_is_no_lock_is_exit_2(ask: Ask, tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.lock"
    file.write_text(text)
    answer = ask("check", "--lock", file)
    assert (answer.code, answer.out) == (2, "")
    assert "this is no lock of version 1" in answer.err


@pytest.mark.parametrize("facts", ["[]", '{"platform": 1}', '{"platform": "cuda", "colour": "red"}'])
def test_a_lock_whose_device_is_none_is_exit_2(ask: Ask, tmp_path: Path, facts: str) -> None:
    file = tmp_path / "x.lock"
    content = {"table": {"digest": "", "layers": []}, "packages": {}, "devices": {"x": json.loads(facts)}}
    file.write_text(json.dumps({"lock": 1, **content, "decisions": {"x": {}}}))
    answer = ask("check", "--lock", file)
    assert (answer.code, answer.out) == (2, "")
    assert "devices.x" in answer.err


def test_a_lock_that_is_missing_is_exit_2(ask: Ask) -> None:
    assert ask("check", "--lock", "missing.lock").code == 2
