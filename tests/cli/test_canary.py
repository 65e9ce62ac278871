"""check --canary: a kernel that hangs or crashes is a finding, and a quarantine remembers it (R11)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ENGINE, Ask

from kerneltable.cli import canary
from kerneltable.model import Device, Table
from kerneltable.run.quarantine import Quarantine
from kerneltable.table import load_table

HERE = Device("cpu", "x86-64-v3", name="here", packages={"torch": "2.11.0"})
WRONG = json.dumps(
    {"kernels": [{"cases": [{"problem": "m=1", "faults": ["error 7 times its bound"]}], "outside": {"admitted": []}}]}
)
CHILDREN = {
    "sound": "pass",
    "hangs": "import time; time.sleep(60)",
    "starts a process that hangs": "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "is wrong": f"import sys; print('''{WRONG}'''); sys.exit(1)",
    "cannot answer": "import sys; print('no kernel', file=sys.stderr); sys.exit(2)",
}
SAID = {
    "hangs": "did not end within 1 s and was killed",
    "starts a process that hangs": "did not end within 1 s and was killed",
    "crashes": "its process was ended by SIGSEGV",
    "is wrong": "m=1: error 7 times its bound",
    "cannot answer": "its process ended with code 2: no kernel",
}


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table()


def proofs(table: Table, monkeypatch: pytest.MonkeyPatch, child: str, kept: Quarantine | None = None):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(canary, "_device", lambda *_: HERE)
    monkeypatch.setattr(canary, "command", lambda kernel, files: [sys.executable, "-S", "-c", CHILDREN[child]])
    return list(canary.canaries(table, [], seconds=1.0, only=("reference",), quarantine=kept))


def test_a_sound_kernel_is_no_finding(table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert proofs(table, monkeypatch, "sound", Quarantine(tmp_path / "q")) == []
    assert Quarantine(tmp_path / "q").entries == ()


@pytest.mark.parametrize("child", sorted(SAID))
def test_what_becomes_of_a_child_is_said_and_remembered_if_it_hung_or_crashed(
    table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, child: str
) -> None:
    start = time.monotonic()
    (found,) = proofs(table, monkeypatch, child, Quarantine(tmp_path / "q"))
    assert time.monotonic() - start < 20
    assert (found.code, found.mark) == ("KT524", table.kernels["reference"].mark)
    assert SAID[child] in found.message
    why = Quarantine(tmp_path / "q").why("reference", HERE)
    assert (why is not None) == (child not in ("is wrong", "cannot answer"))


def test_a_killed_child_leaves_no_process_behind(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    words = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', {words!r}]); time.sleep(60)"
    ended = canary.run_child([sys.executable, "-S", "-c", program], 2.0)
    assert ended.code is None
    pid = int(noted.read_text())
    for _ in range(100):
        if not alive(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def alive(pid: int) -> bool:
    """A process that runs; one that only waits to be collected does not."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_device_that_cannot_be_asked_is_no_answer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "run_child", lambda words, seconds: canary.Ended(None, "", ""))
    found = ask("check", "--canary", "--canary-seconds", "3")
    assert found.code == 2
    assert "no answer within 3 s" in found.err


def test_the_command_runs_a_real_kernel_in_a_child_and_passes_the_files_on(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ENGINE))
    file = tmp_path / "deploy.yaml"
    file.write_text("override: 1\nkernels:\n  reference: {accepts: {m: {max: 64}}}\n")
    file.chmod(0o600)
    found = ask("check", "-f", file, "--canary", "--kernel", "reference", "--format", "json")
    assert found.code == 0
    assert found.json["canaries"] == {"ran": ["reference"], "not_run": {}}
    assert found.err == "kerneltable: check --canary: ran reference\n"
    assert not [one for one in found.json["findings"] if one["code"] == "KT524"]
    assert str(file) in " ".join(canary.command("reference", ["-f", str(file)]))


def test_a_named_kernel_that_does_not_fit_is_no_answer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_device", lambda *_: HERE)
    found = ask("check", "--canary", "--kernel", "hopper_fp8_block", "--format", "json")
    assert (found.code, found.json["canaries"]["ran"], list(found.json["canaries"]["not_run"])) == (
        2,
        [],
        ["hopper_fp8_block"],
    )
    assert "check --canary: ran no kernel\n" in found.err
    assert "--kernel hopper_fp8_block: a run was wanted; it was not run: runs_on: wanted cuda, found cpu" in found.err


def test_a_child_that_finds_nothing_to_run_proves_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHILDREN, "is idle", 'import sys; print(\'{"kernels": [{"cases": []}]}\'); sys.exit(2)')
    monkeypatch.setattr(canary, "_device", lambda *_: HERE)
    monkeypatch.setattr(canary, "command", lambda kernel, files: [sys.executable, "-S", "-c", CHILDREN["is idle"]])
    tried = canary.Tried()
    assert list(canary.canaries(table, [], only=("reference", "hopper_fp8_block"), tried=tried)) == []
    assert (tried.ran, set(tried.idle)) == ([], {"reference", "hopper_fp8_block"})


def test_which_kernels_ran_and_which_do_not_fit_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_device", lambda *_: HERE)
    monkeypatch.setattr(canary, "run_child", lambda *_: canary.Ended(0, "", ""))
    found = ask("check", "--canary")
    ran, unfit = found.err.splitlines()
    assert found.code == 0
    assert ran.startswith("kerneltable: check --canary: ran ")
    assert "reference" in ran
    assert unfit.startswith("kerneltable: check --canary: do not fit this machine: ")
    assert "hopper_fp8_block" in unfit


def test_an_unknown_kernel_is_named(ask: Ask) -> None:
    found = ask("check", "--canary", "--kernel", "referense")
    assert found.code == 2
    assert "reference" in found.err


def test_the_parent_never_imports_torch() -> None:
    program = (
        "import sys; from kerneltable.cli import canary; from kerneltable.table import load_table; "
        "from kerneltable.model import Device; from kerneltable.run.quarantine import Quarantine; "
        "canary._device = lambda *_: Device('cpu', 'x86-64-v3'); "
        "canary.run_child = lambda *_: canary.Ended(0, '', ''); "
        "list(canary.canaries(load_table(), [])); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ENGINE)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
