"""README says what the commands print: each `$ kerneltable ...` block is run and compared with what it shows."""

import re
import shlex
from pathlib import Path

import pytest

from kerneltable.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n\$ kerneltable (.+?)\n(.*?)```", TEXT, flags=re.S)
MACHINE = ("run ",)  # their numbers are those of the machine that wrote them


def test_readme_has_no_place_left_open():
    assert "@@" not in TEXT
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_readme_shows_what_the_command_prints(command, shown, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if command.startswith(MACHINE):
        assert main([*shlex.split(command)]) == 0
        printed = capsys.readouterr().out
        layers = [line.split()[0] for line in shown.splitlines() if line.startswith("model.")]
        assert layers == [line.split()[0] for line in printed.splitlines() if line.startswith("model.")]
        assert f"{len(layers)} of {len(layers)} layers ran within their bound" in printed
        return
    main(shlex.split(command))
    answer = capsys.readouterr()
    assert (answer.out + answer.err).strip() == shown.strip()


def test_the_commands_of_readme_exist(capsys):
    for name in re.findall(r"^\| `([a-z]+)`", TEXT, flags=re.M):
        assert main([name, "--help"]) == 0, name
    capsys.readouterr()
