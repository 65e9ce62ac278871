"""NVRTC without a GPU: sources become cubins of the named architecture, through the cache, or give a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import nvrtc
from kerneltable.ops.settings import CompileSettings
from kerneltable.ops.sources import Source, source

NO_NVRTC = nvrtc.find_nvrtc() if isinstance(nvrtc.find_nvrtc(), str) else ""
needs_nvrtc = pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC or "NVRTC is here")
TEXT = '#include "part.cuh"\nextern "C" __global__ void fill(float* to) { to[threadIdx.x] = VALUE + PART; }\n'


@pytest.fixture
def code(tmp_path: Path) -> Source:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "part.cuh").write_text("#define PART 1.0f\n")
    (tmp_path / "fill.cu").write_text(TEXT)
    return Source(tmp_path / "fill.cu", tmp_path / "include")


@pytest.fixture
def settings(tmp_path: Path) -> CompileSettings:
    return CompileSettings(folder=tmp_path / "cache")


@needs_nvrtc
@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a", "sm_121a"])
def test_a_source_becomes_a_cubin_with_its_function(code: Source, settings: CompileSettings, target: str) -> None:
    made = nvrtc.compile_cubin(code, target, settings, {"VALUE": "2.0f"})
    assert made.content.startswith(b"\x7fELF")
    assert b"fill" in made.content
    assert made.path.suffix == ".cubin"


@needs_nvrtc
def test_what_goes_into_a_cubin_makes_another_entry(code: Source, settings: CompileSettings) -> None:
    first = nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1})
    assert nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1}).path == first.path
    others = [
        nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 2}),
        nvrtc.compile_cubin(code, "sm_80", settings, {"VALUE": 1}),
    ]
    (code.include / "part.cuh").write_text("#define PART 3.0f\n")
    others.append(nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1}))
    assert len({first.path, *(other.path for other in others)}) == 4


@needs_nvrtc
@pytest.mark.parametrize("target", ["sm_89a", "sm_99", "90", "sm_90; rm", ""])
def test_a_target_that_does_not_exist_is_a_reason(code: Source, settings: CompileSettings, target: str) -> None:
    with pytest.raises(KernelUnavailable, match=r"fill\.cu: "):
        nvrtc.compile_cubin(code, target, settings, {"VALUE": 1})


@needs_nvrtc
def test_an_error_in_the_source_is_quoted(code: Source, settings: CompileSettings) -> None:
    with pytest.raises(KernelUnavailable, match='identifier "VALUE" is undefined'):
        nvrtc.compile_cubin(code, "sm_90a", settings, {})


@needs_nvrtc
def test_a_kept_cubin_serves_where_nvrtc_is_absent_or_forbidden(
    code: Source, settings: CompileSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1})
    forbidden = CompileSettings(folder=settings.folder, compile=False)
    assert nvrtc.compile_cubin(code, "sm_90a", forbidden, {"VALUE": 1}) == made
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: "NVRTC is not here")
    assert nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1}) == made


def test_without_nvrtc_the_reason_is_given(
    code: Source, settings: CompileSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: "NVRTC is not here")
    with pytest.raises(KernelUnavailable, match=r"fill for sm_90a: there is no compiler.*NVRTC is not here"):
        nvrtc.compile_cubin(code, "sm_90a", settings, {"VALUE": 1})


def test_an_unknown_source_is_a_reason() -> None:
    with pytest.raises(KernelUnavailable, match=r"wanted cuda/nothing\.cu"):
        source("cuda/nothing.cu")
