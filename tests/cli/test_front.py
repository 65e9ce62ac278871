"""The front of the command line: help, version, mistyped commands and options."""

from __future__ import annotations

import pytest
from commands import ASKED, ENGINE, OFFLINE, Answer, Ask

import kerneltable
from kerneltable.cli import COMMANDS
from kerneltable.cli.options import DTYPES
from kerneltable.select.problems import DTYPES as SELECT_DTYPES


def test_help_lists_every_command_on_stdout(ask: Ask) -> None:
    for flag in ("--help", "-h", "help"):
        answer = ask(flag)
        assert (answer.code, answer.err) == (0, "")
        for name in COMMANDS:
            assert f"\n  {name} " in answer.out


def test_no_command_is_a_usage_error_on_stderr(ask: Ask) -> None:
    answer = ask()
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("usage: kerneltable COMMAND")


def test_the_version_is_that_of_the_project(ask: Ask) -> None:
    assert ask("--version").out == f"kerneltable {kerneltable.__version__}\n"
    project = ENGINE.parent / "pyproject.toml"
    if project.is_file():
        assert f'\nversion = "{kerneltable.__version__}"\n' in project.read_text()


def test_a_mistyped_command_is_refused_with_the_nearest(ask: Ask) -> None:
    assert ask("chek") == Answer(2, "", "kerneltable: there is no command 'chek'; did you mean 'check'?\n")


def test_an_option_before_the_command_is_refused_with_the_way_out(ask: Ask) -> None:
    answer = ask("--format", "json", "check")
    assert (answer.code, answer.out) == (2, "")
    assert "the command comes first" in answer.err


def test_a_mistyped_option_is_refused_with_the_nearest(ask: Ask) -> None:
    answer = ask("check", "--formt=json")
    assert answer == Answer(2, "", "kerneltable check: there is no option '--formt=json'; did you mean '--format'?\n")
    assert "there is no further argument 'b'" in ask("check", "a", "b").err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("select", *ASKED, "--n", "128"), "argument --n: one value was wanted; found '4096' and '128'"),
        (("explain", *ASKED, "--device=a100"), "argument --device: one value was wanted; found 'h200' and 'a100'"),
        (("select", *ASKED, "--require", "reference", "--require", "triton_w8a16"), "argument --require: one value"),
        (("explain", *ASKED, "--input", "bf16", "--input", "f16"), "argument --input: one value was wanted"),
        (("check", "--lock", "a", "--lock", "b"), "argument --lock: one value was wanted; found 'a' and 'b'"),
        (("show", "--format", "text", "--format", "json"), "argument --format: one value was wanted"),
    ],
)
def test_an_option_of_one_value_that_is_given_twice_is_refused(ask: Ask, argv: tuple[str, ...], said: str) -> None:
    answer = ask(*argv)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.endswith("; give the option once\n")


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("explain", "mxfp8", "--n", "1", "--k", "1", "--facts", ""), "--facts"),
        (("check", "--lock", ""), "--lock"),
        (("check", "--baseline", ""), "--baseline"),
        (("conformance", "-o", ""), "-o/--out"),
        (("show", "-f", ""), "-f/--override"),
        (("diff", "--base-override", ""), "--base-override"),
    ],
)
def test_a_file_without_a_name_is_refused(ask: Ask, argv: tuple[str, ...], option: str) -> None:
    answer = ask(*argv)
    assert (answer.code, answer.out) == (2, "")
    assert f"argument {option}: a name was wanted; found ''; name one, or leave the option out\n" in answer.err


def test_options_that_may_be_repeated_are_kept_all(ask: Ask) -> None:
    disabled = ("--disable", "hopper_fp8_block", "--disable", "torch_scaled_mm_block")
    refused = [c for c in ask("explain", *ASKED, *disabled, "--format", "json").json["candidates"] if c["refusals"]]
    assert {c["kernel"] for c in refused if c["refusals"][0]["predicate"] == "disable"} == set(disabled[1::2])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(ask: Ask, command: str) -> None:
    answer = ask(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"usage: kerneltable {command}" in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(ask: Ask, command: str) -> None:
    assert "--format {text,json" in " ".join(ask(command, "--help").out.split())


def test_dtypes_on_the_command_line_are_those_of_the_selection() -> None:
    assert DTYPES == SELECT_DTYPES


@pytest.mark.parametrize("command", OFFLINE)
def test_json_is_an_object_whose_first_key_is_format(ask: Ask, command: str) -> None:
    answer = ask(command, *OFFLINE[command], "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    assert next(iter(answer.json)) == "format"
    assert answer.json["format"] == 1
