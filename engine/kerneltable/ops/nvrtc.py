"""CUDA sources of csrc/cuda compiled with NVRTC to cubins: needs neither nvcc nor a GPU, only cuda-bindings."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kerneltable.errors import KernelUnavailable
from kerneltable.ops.cache import fetch
from kerneltable.ops.cache_entry import Binary, Recipe
from kerneltable.ops.settings import CompileSettings
from kerneltable.ops.sources import Source

FLAGS = ("--std=c++17",)
TARGET = re.compile(r"sm_\d{2,3}[af]?")


def compile_cubin(code: Source, target: str, settings: CompileSettings, defines: dict[str, str | int]) -> Binary:
    """A CUDA source as a cubin for one architecture, from the cache or compiled now.

    target    "sm_90a", with NVRTC's suffix for features that only that chip (a) or its family (f) has
    defines   preprocessor macros, name -> value
    returns   the cubin; extern "C" functions keep their names
    errors    KernelUnavailable if NVRTC is absent or refuses the source or the target; NVRTC's own log is quoted
    """
    if not TARGET.fullmatch(target):
        raise KernelUnavailable(f"{code.path.name}: target must look like sm_90 or sm_90a; found {target[:40]!r}")
    flags = (*FLAGS, *(f"-D{name}={value}" for name, value in sorted(defines.items())))
    bindings = find_nvrtc()
    version = "" if isinstance(bindings, str) or not settings.compile else _version(bindings)
    recipe = Recipe(code.name, ".cubin", code.digest(flags), target, version)
    if isinstance(bindings, str):
        try:
            return fetch(recipe, settings, None)
        except KernelUnavailable as error:
            raise KernelUnavailable(f"{error}; {bindings}") from error
    return fetch(recipe, settings, lambda: _compile(bindings, code, (*flags, f"--gpu-architecture={target}")))


def find_nvrtc() -> Any:
    """The module cuda.bindings.nvrtc with a library that answers, or a text that says why there is none."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        wanted = "cuda-bindings, nvidia-cuda-nvrtc and nvidia-cuda-runtime"
        return f"NVRTC cannot be used ({error}); pip install 'kerneltable[cuda]' brings {wanted}"
    return nvrtc


def include_folders(code: Source) -> list[Path]:
    """The folder of csrc's headers, then those of the CUDA headers that came with Python packages."""
    found = find_spec("nvidia")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    packaged = [folder for place in places for folder in sorted(place.glob("cu*/include"))]
    return [code.include, *(folder for folder in packaged if (folder / "cuda_fp8.h").is_file())]


def _version(nvrtc: Any) -> str:
    _, major, minor = nvrtc.nvrtcVersion()
    return f"NVRTC {major}.{minor}"


def _compile(nvrtc: Any, code: Source, flags: tuple[str, ...]) -> bytes:
    status, program = nvrtc.nvrtcCreateProgram(code.path.read_bytes(), code.path.name.encode(), 0, [], [])
    if int(status):
        raise KernelUnavailable(f"{code.path.name}: NVRTC could not start: {status}")
    try:
        options = [*flags, *(f"--include-path={folder}" for folder in include_folders(code))]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if int(status):
            log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            first = "\n".join(log.decode(errors="replace").strip("\0\n ").splitlines()[:20])
            raise KernelUnavailable(f"{code.path.name}: NVRTC gave {status.name} for {' '.join(flags)}:\n{first}")
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(size_of: Callable[[Any], tuple[Any, int]], copy: Callable[[Any, bytes], Any], program: Any) -> bytes:
    content = bytes(size_of(program)[1])  # NVRTC writes into these bytes
    copy(program, content)
    return content
