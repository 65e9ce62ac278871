"""`kerneltable build`, and the environment variables that say where compiled code is and whether any may be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ENGINE, Ask

import kerneltable
from kerneltable.cli import build as command
from kerneltable.cli import environment
from kerneltable.errors import KernelTableError
from kerneltable.ops import nvrtc
from kerneltable.ops.settings import CompileSettings, activate, active
from kerneltable.run.checks import building
from kerneltable.table import load_table

NO_NVRTC = nvrtc.find_nvrtc() if isinstance(nvrtc.find_nvrtc(), str) else ""
needs_nvrtc = pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC or "NVRTC is here")
ONE = (
    "--kernel",
    "hopper_w8a16",
    "--shapes",
    "4096x7168",
    "--multiprocessors",
    "132",
    "--some",
    "1",
    "--processes",
    "1",
)


@needs_nvrtc
def test_a_build_says_what_it_made_and_a_second_one_what_it_found(ask: Ask, tmp_path: Path) -> None:
    first = ask("build", "--arch", "h200", *ONE, "--out", tmp_path / "made", "--format", "json")
    assert (first.code, first.err) == (0, "")
    assert first.json["folder"] == str(tmp_path / "made")
    for built in first.json["built"]:
        assert (built["architecture"], built["target"], built["compiled"], built["failed"]) == ("sm90", "sm_90a", 1, 0)
        assert built["bytes"] > 1000
        assert built["kernels"] == ["hopper_w8a16"]
    second = ask("build", "--arch", "sm_90a,h200", *ONE, "--out", tmp_path / "made")
    assert "cuda/hopper_w8a16.cu" in second.out
    assert "0 compiled" in second.out.splitlines()[-1]


@needs_nvrtc
def test_code_that_does_not_compile_is_shown_and_the_exit_is_1(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = building.Outcome(0, False, 0.1, "hopper_w8a16.cu: expected a ';'")
    monkeypatch.setattr(building, "_one", lambda *_: found)
    answer = ask("build", "--arch", "sm90", *ONE, "--out", tmp_path / "made")
    assert answer.code == 1
    assert "    hopper_w8a16.cu: expected a ';'" in answer.out.splitlines()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arch", "sm9O"), "unknown device"),
        (("--arch", "x86-64-v3"), "say host"),
        (("--arch", "cuda:13.0"), "the table describes no such chip"),
        (("--arch", "sm90", "--kernel", "hopper_w8a6"), "hopper_w8a16"),
        (("--arch", "sm90", "--dtype", "bf61"), "bf16, f16, f32"),
        (("--arch", "sm90", "--shapes", "4096"), "--shapes"),
        ((), "--arch"),
    ],
)
def test_what_cannot_be_built_is_named(ask: Ask, words: tuple[str, ...], said: str) -> None:
    answer = ask("build", *words)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


@pytest.mark.parametrize("option", ["--some", "--processes", "--multiprocessors"])
def test_none_of_something_is_no_number_of_it(ask: Ask, option: str) -> None:
    answer = ask("build", "--arch", "host", option, "0")
    assert (answer.code, answer.out) == (2, "")
    assert f"argument {option}: a whole number from 1 to 2147483647 was wanted; found '0'" in answer.err


@pytest.mark.parametrize(("option", "name"), [("--model", "/nonexistent"), ("--shapes", "gpt9")])
def test_sizes_are_read_also_where_nothing_asks_for_them(ask: Ask, option: str, name: str) -> None:
    answer = ask("build", "--arch", "host", option, name)
    assert (answer.code, answer.out) == (2, "")
    assert name in answer.err


def test_without_a_compiler_nothing_is_claimed(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "find_nvrtc", lambda: "NVRTC is not here")
    answer = ask("build", "--arch", "sm90", *ONE, "--out", tmp_path / "made")
    assert (answer.code, answer.out) == (2, "")
    assert "nothing was built: NVRTC is not here" in answer.err


def test_what_has_a_compiler_is_built_and_the_rest_is_reported(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def built(code: object, settings: object, compiler: object) -> SimpleNamespace:
        return SimpleNamespace(content=b"code", fresh=True, path=tmp_path)

    monkeypatch.setattr(building, "find_nvrtc", lambda: "NVRTC is not here")
    monkeypatch.setattr(building, "find_compiler", lambda: None)
    monkeypatch.setattr(building, "compiled_cpp", built)
    words = ("--arch", "h200,host", "--some", "1", "--processes", "1", "--out", tmp_path / "made")
    answer = ask("build", *words)
    assert (answer.code, answer.err) == (1, "")
    host, *others, last = answer.out.splitlines()
    assert host.startswith("cpu/")
    assert " host " in host
    assert "1 compiled" in host
    assert "    NVRTC is not here" in others
    assert "1 compiled, 0 cached" in last
    found = ask("build", *words, "--format", "json")
    failed = {one["architecture"]: (one["failed"] > 0, one["errors"]) for one in found.json["built"]}
    assert failed == {"host": (False, []), "sm90": (True, ["NVRTC is not here"])}


def test_without_a_home_folder_the_user_is_told_what_to_set(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompileSettings, "home", lambda settings: settings.folder)
    answer = ask("build", "--arch", "gfx942")
    assert (answer.code, answer.out) == (2, "")
    assert "no home folder; give --out DIR, or set KERNELTABLE_CACHE_DIR or HOME" in answer.err


@pytest.mark.parametrize("name", ["gfx942", "v100"])
def test_a_chip_without_code_of_this_project_needs_no_build(ask: Ask, name: str) -> None:
    answer = ask("build", "--arch", name)
    assert (answer.code, answer.out.strip()) == (
        0,
        "nothing to build: no row with device code of this project runs there",
    )


def test_names_of_chips_are_those_of_every_command_and_all_means_each() -> None:
    table = load_table()
    assert command.architectures("h200,sm_90a,sm90,dgx-spark", table) == (["sm90", "sm121"], False)
    assert command.architectures("sm90,cpu", table) == (["sm90"], True)
    assert command.architectures("all", table) == (list(table.platforms["cuda"].architectures), True)
    assert command.dtypes("bf16,f16:f32") == (("bf16", "bf16"), ("f16", "f32"))


def test_the_environment_says_where_code_is_kept_and_whether_it_may_be_made(tmp_path: Path) -> None:
    both = {environment.CACHE_DIR: str(tmp_path), environment.JIT: "0"}
    assert environment.settings_of(both) == CompileSettings(folder=tmp_path, compile=False)
    assert environment.settings_of({environment.JIT: "1"}) == CompileSettings()
    assert environment.settings_of({"PATH": "/bin"}) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (environment.JIT, "no"),
        (environment.JIT, ""),
        (environment.CACHE_DIR, ""),
        (environment.CACHE_DIR, "cache"),
        (environment.CACHE_DIR, __file__),
    ],
)
def test_a_value_that_is_none_is_an_error_before_the_command_runs(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    answer = ask("rule", "KT309")
    assert (answer.code, answer.out) == (2, "")
    assert variable in answer.err


def test_the_environment_holds_for_the_command_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(command, "run", lambda _: seen.append(active()) or 0)
    monkeypatch.setenv(environment.CACHE_DIR, str(tmp_path))
    assert ask("build", "--arch", "sm90").code == 0
    assert seen == [CompileSettings(folder=tmp_path)]
    assert active() == CompileSettings()


def test_a_build_that_must_not_compile_is_a_contradiction(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.JIT, "0")
    answer = ask("build", "--arch", "sm90")
    assert answer.code == 2
    assert "unset it" in answer.err


def test_in_isolated_mode_no_variable_is_read() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ENGINE)!r})\n"
        "from kerneltable.cli import environment\n"
        "environment.say_unread({'KERNELTABLE_JIT': '0'}); print(environment.settings_of({'KERNELTABLE_JIT': '0'}))"
    )
    told = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "None"
    assert "KERNELTABLE_JIT" in told.stderr


def test_a_program_says_the_same_with_one_call(tmp_path: Path) -> None:
    before = active()
    try:
        kerneltable.set_compiling(tmp_path, jit=False, prebuilt=[tmp_path / "image"])
        assert active() == CompileSettings(tmp_path, (tmp_path / "image",), False)
    finally:
        activate(before)
    for bad in ("cache", __file__):
        with pytest.raises(KernelTableError, match="cache: a"):
            kerneltable.set_compiling(bad)
    assert active() == before


def test_code_that_no_folder_kept_is_a_failure(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "find_compiler", lambda: None)
    lost = SimpleNamespace(content=b"code", fresh=True, path=None)
    monkeypatch.setattr(building, "compiled_cpp", lambda code, settings, compiler: lost)
    answer = ask("build", "--arch", "host", "--out", tmp_path / "made")
    assert answer.code == 1
    assert f"compiled, but not kept in {tmp_path / 'made'}: the log says why" in answer.out


def test_every_kernel_with_code_for_processors_is_built_ahead() -> None:
    kernels = Path(building.__file__).parents[2] / "kernels"
    using = {file.stem for file in kernels.glob("*.py") if "kernels import cpu_fp8" in file.read_text()}
    using |= {file.stem for file in kernels.glob("*.py") if "ops import cpu_fp8" in file.read_text()}
    using |= {file.stem for file in kernels.glob("*.py") if "ops.cpu_fp8 import" in file.read_text()}
    assert using == set(building.CPP_SOURCES)
