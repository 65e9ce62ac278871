"""Compiling C++: what goes wrong is a reason, and what was compiled is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import SOURCE
from kerneltable.ops.settings import CompileSettings


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


@pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}")
def test_a_kept_library_serves_a_machine_without_a_compiler(tmp_path: Path) -> None:
    settings, compiler = CompileSettings(folder=tmp_path), cpp.find_compiler()
    made = cpp.compiled(SOURCE, settings, compiler)
    assert cpp.compiled(SOURCE, settings, "none here") == made
    assert cpp.compiled(SOURCE, CompileSettings(folder=tmp_path, compile=False), compiler) == made
