"""README says what the commands print: each `$ kerneltable ...` block is run and compared with what it shows."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from kerneltable.cli import COMMANDS, main

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


def test_the_extras_that_readme_and_messages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [TEXT, *(file.read_text() for file in (ROOT / "engine").rglob("*.py"))]
    named = {name for text in texts for name in re.findall(r"kerneltable\[([a-z]+)\]", text)}
    assert {"cuda", "plot", "samples", "transformers"} <= named
    assert named <= set(extras)
    assert all(any(package in one for one in extras["cuda"]) for package in ("cuda-bindings", "nvidia-cuda-nvrtc"))


def test_what_readme_runs_needs_no_extra():
    """Samples of Hugging Face's kinds are written by safetensors, which needs numpy and does not ask for it."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(one.startswith("numpy") for one in needed)


def test_the_commands_of_readme_are_those_there_are(capsys):
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    named = {name for line in lines for name in re.findall(r"`([a-z]+)`", line.split("|")[1])}
    assert named == set(COMMANDS)
    for name in sorted(named):
        assert main([name, "--help"]) == 0, name
    capsys.readouterr()
