"""Compiling C++: what goes wrong is a reason, and what was compiled is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import cpp
from kerneltable.ops.cache_entry import Binary
from kerneltable.ops.cpu_fp8 import SOURCE
from kerneltable.ops.settings import CompileSettings
from kerneltable.ops.sources import Source

needs_compiler = pytest.mark.skipif(
    isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}"
)


def test_without_a_compiler_the_kernel_is_unavailable_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(KernelUnavailable, match=r"fp8_linear.*there is no compiler.*install one"):
        cpp.compiled(SOURCE, CompileSettings(folder=tmp_path), "install one")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'sorry, unimplemented' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(KernelUnavailable, match=r"exit status 3:\nsorry, unimplemented"):
        cpp.compiled(SOURCE, CompileSettings(folder=tmp_path / "c"), cpp.Compiler(str(broken), "broken 1"))


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path) -> None:
    slow = tmp_path / "c++"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    settings = CompileSettings(folder=tmp_path / "c", timeout_s=0.2)
    with pytest.raises(KernelUnavailable, match="did not finish"):
        cpp.compiled(SOURCE, settings, cpp.Compiler(str(slow), "slow 1"))


def compiled_answer(folder: Path) -> bytes:
    (folder / "answer.cpp").write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 42; }')
    compiler = cpp.find_compiler()
    assert isinstance(compiler, cpp.Compiler)
    return cpp.compile_source(Source(folder / "answer.cpp", folder), compiler, 60)


@needs_compiler
@pytest.mark.parametrize("kept", ["nowhere", "where no code may run"])
def test_a_library_is_loaded_from_a_private_copy_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    content = compiled_answer(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    path = None if kept == "nowhere" else tmp_path / "absent.so"
    assert cpp._load("answer", Binary(path, content)).answer() == 42
    assert list((tmp_path / "here").iterdir()) == []


@needs_compiler
def test_without_a_temporary_folder_a_library_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = compiled_answer(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KernelUnavailable, match="answer: no temporary folder for compiled code can be written"):
        cpp._load("answer", Binary(None, content))
    with pytest.raises(KernelUnavailable, match="answer: no temporary folder for compiled code can be written"):
        compiled_answer(tmp_path)


def test_bytes_that_are_no_library_are_a_reason() -> None:
    with pytest.raises(KernelUnavailable, match="answer: the compiled library cannot be loaded: "):
        cpp._load("answer", Binary(None, b"no library"))


@needs_compiler
def test_a_kept_library_serves_a_machine_without_a_compiler(tmp_path: Path) -> None:
    settings, compiler = CompileSettings(folder=tmp_path), cpp.find_compiler()
    made = cpp.compiled(SOURCE, settings, compiler)
    assert cpp.compiled(SOURCE, settings, "none here") == made
    assert cpp.compiled(SOURCE, CompileSettings(folder=tmp_path, compile=False), compiler) == made
