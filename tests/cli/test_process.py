"""The process as a whole: imports, time, streams, interrupts, colour."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ASKED, ENGINE, OFFLINE, Answer, Ask, override

import kerneltable
from kerneltable.table import load_table


def process(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(ENGINE), **more.pop("env", {})}
    command = [sys.executable, "-m", "kerneltable.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **more)


@pytest.mark.parametrize("command", OFFLINE)
def test_offline_commands_never_import_torch_or_rich(command: str) -> None:
    code = (
        "import sys; from kerneltable.cli import main;"
        f"code = main({[command, *OFFLINE[command]]!r});"
        "bad = {'torch', 'triton', 'rich', 'numpy', 'safetensors'} & set(sys.modules);"
        "sys.exit(code or (str(bad) if bad else 0))"
    )
    env = {"PYTHONPATH": str(ENGINE)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_cold_check_with_all_proofs_takes_a_second_at_most() -> None:
    """The best of up to 25 runs: what it costs, not how busy the machine is."""
    best = float("inf")
    for _ in range(25):
        begin = time.perf_counter()
        assert process("check").returncode == 0
        best = min(best, time.perf_counter() - begin)
        if best <= 1.0:
            break
    assert best <= 1.0


def test_the_module_can_be_run_and_refuses_an_unknown_command() -> None:
    ran = process("chek")
    assert (ran.returncode, ran.stdout) == (2, "")


def test_check_works_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "dispatch.yaml").write_text("not a table")
    assert process("check", cwd=tmp_path).returncode == 0


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `kerneltable LINE`."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"'{sys.executable}' -m kerneltable.cli {line}"],
        capture_output=True, text=True, env={"PYTHONPATH": str(ENGINE), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "first"), [("show", "# dispatch.yaml"), ("run --sample hf-fp8-tensor --device cpu", "hf-fp8-tensor")]
)
def test_a_reader_that_leaves_is_no_error(command: str, first: str) -> None:
    """A reader that is gone before the first line, and one that takes it."""
    ran = shell(f"{command} | head -n 1")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(first)
    gone = shell(f"{command} | true")
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, "", "")


@pytest.mark.parametrize(("command", "code"), [("check BAD", 1), ("explain nope --n 1 --k 1", 2)])
def test_a_reader_that_leaves_does_not_hide_the_exit_code(tmp_path: Path, command: str, code: int) -> None:
    file = override(tmp_path, "override: 1\ndisable: [{kernel: nope, reason: a}, {kernel: nape, reason: a}]\n")
    line = command.replace("BAD", f"-f '{file}'")
    assert shell(f"{line} | head -n 1").returncode == code
    gone = shell(f"{line} 2>&1 | true")
    assert (gone.returncode, gone.stdout, gone.stderr) == (code, "", "")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_with_streams_closed_the_exit_code_still_answers(closed: str) -> None:
    for command, code in (("check", 0), ("check missing.yaml", 2), ("nope", 2)):
        ran = shell(f"{command} {closed}")
        assert (ran.returncode, ran.stdout) == (code, "")
        assert "Traceback" not in ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["show", "--version"])
def test_an_answer_that_has_no_room_is_said_in_one_line(command: str) -> None:
    """Also a long one, of which a part has gone to the system before the end."""
    ran = shell(f"{command} > /dev/full")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert ran.stderr.startswith("kerneltable: ")
    assert ran.stderr.endswith(": No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_messages_that_have_no_room_leave_the_exit_code() -> None:
    assert shell("explain nope --n 1 --k 1 2> /dev/full").returncode == 2
    assert shell("chek > /dev/full 2>&1").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["lock --devices h200", "matrix --devices h200 --scheme mxfp8", "schema"])
def test_a_file_that_has_no_room_is_named(ask: Ask, command: str) -> None:
    assert ask(*command.split(), "-o", "/dev/full") == Answer(
        2, "", "kerneltable: /dev/full: No space left on device\n"
    )
    unnamed = ask(*command.split(), "-o", "")
    assert (unnamed.code, unnamed.out) == (2, "")
    assert "argument -o/--out: a name was wanted; found ''" in unnamed.err


ENCODED = ("show", f"explain {' '.join(ASKED)}", "check", "diff", "matrix --devices h200 --scheme mxfp8")
FORMATS = [(command, "json") for command in ENCODED] + [(command, "text") for command in ENCODED] + [("check", "sarif")]
REASONED = "override: 1\ndisable: [{kernel: triton_w8a16, platform: cuda, reason: gr\u00f6\u00dfer \u6f22}]\n"


@pytest.mark.parametrize(("command", "form"), FORMATS)
def test_no_text_and_no_file_name_is_beyond_the_encoding_of_a_stream(tmp_path: Path, command: str, form: str) -> None:
    file = override(tmp_path, REASONED)
    odd = Path(override(tmp_path, REASONED, "bad\udcff.yaml"))
    argv = (*command.split(), "--format", form)
    for name, encoding in ((file, "ascii"), (str(odd), "utf-8:strict")):
        ran = process(*argv, "-f", name, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"})
        assert (ran.returncode in (0, 1), "Traceback" in ran.stderr) == (True, False), ran.stderr
        if form != "text":
            assert json.loads(ran.stdout)
    if (command, form) == ("show", "text"):
        assert r"bad\udcff.yaml:2:" in ran.stdout


def test_an_interrupt_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("kerneltable.cli._run", interrupt)
    assert ask("check") == Answer(130, "", "kerneltable: interrupted\n")


def test_an_error_of_the_system_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    def fail(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "facts.json")

    monkeypatch.setattr("kerneltable.cli._run", fail)
    assert ask("check") == Answer(2, "", "kerneltable: facts.json: Permission denied\n")


def test_no_kernel_raised_by_a_command_is_exit_1(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    table = load_table()
    asked = kerneltable.Problem("mxfp8", n=1, k=1)
    selection = kerneltable.select(table, kerneltable.device("h200", table), asked)

    def fail(*_: Any) -> Any:
        raise kerneltable.NoKernelError("nothing takes it", selection)

    monkeypatch.setattr("kerneltable.cli._run", fail)
    assert ask("check") == Answer(1, "", "kerneltable: nothing takes it\n")


@pytest.mark.parametrize(
    ("env", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1"}, False),
    ],
)
def test_colour_only_where_it_is_wanted(env: dict[str, str], coloured: bool) -> None:
    ran = process("explain", *ASKED, env=env)
    assert ran.returncode == 0
    assert ("\033[32mchosen\033[0m" in ran.stdout) == coloured


@pytest.mark.parametrize(
    ("terminal", "term", "coloured"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_a_terminal_that_can_show_colour_gets_it(
    monkeypatch: pytest.MonkeyPatch, ask: Ask, terminal: bool, term: str, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert ("\033[" in ask("explain", *ASKED).out) == coloured


def test_findings_on_stderr_are_not_coloured_into_a_file(ask: Ask, tmp_path: Path) -> None:
    answer = ask("explain", *ASKED, "-f", override(tmp_path, "override: 2\n"))
    assert (answer.code, answer.out) == (2, "")
    assert "\033" not in answer.err
    assert "error[KT" in answer.err
