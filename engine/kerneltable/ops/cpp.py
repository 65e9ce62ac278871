"""C++ of csrc/cpu, compiled by the system's compiler into a plain C-ABI shared library and loaded with ctypes."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kerneltable.errors import KernelUnavailable
from kerneltable.ops.cache import fetch
from kerneltable.ops.cache_entry import Binary, Recipe
from kerneltable.ops.settings import CompileSettings, active
from kerneltable.ops.sources import Source, source

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-w")
"""No -march: instruction paths are chosen at run time, so one binary serves every chip of its architecture."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: its path, and the text that tells it from every other."""

    path: str
    version: str


@cache
def find_compiler() -> Compiler | str:
    """The first of c++, g++ and clang++ that answers, or why there is none."""
    reasons = []
    for name in COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            asked = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{path}: {error}")
            continue
        if asked.returncode == 0 and asked.stdout:
            return Compiler(path, asked.stdout.strip())
        reasons.append(f"{path} --version: exit status {asked.returncode}")
    return "; ".join(reasons) or f"none of {', '.join(COMPILERS)} is on the PATH; install a C++17 compiler"


@cache
def load_library(relative: str) -> ctypes.CDLL:
    """The compiled library of a file of csrc, loaded once a process; calls through it release the GIL.

    relative  the file's path in csrc, e.g. "cpu/fp8_linear.cpp"
    errors    KernelUnavailable if it cannot be found, compiled or loaded
    """
    return _load(Path(relative).stem, compiled(relative, active(), find_compiler()))


def compiled(relative: str, settings: CompileSettings, compiler: Compiler | str) -> Binary:
    """The shared library of a file of csrc, from the cache or compiled now.

    compiler  a string says why there is none; then only a binary that is already kept will do
    errors    KernelUnavailable with the reason
    """
    code = source(relative)
    known = isinstance(compiler, Compiler)
    version = compiler.version if isinstance(compiler, Compiler) and settings.compile else ""
    recipe = Recipe(code.name, ".so", code.digest(FLAGS), f"{platform.system()}-{platform.machine()}", version)
    try:
        if not isinstance(compiler, Compiler):
            return fetch(recipe, settings, None)
        return fetch(recipe, settings, lambda: compile_source(code, compiler, settings.timeout_s))
    except KernelUnavailable as error:
        raise KernelUnavailable(str(error) if known else f"{error}; {compiler}") from error


def compile_source(code: Source, compiler: Compiler, timeout_s: float) -> bytes:
    """Compile one C++ file into a shared library and return its bytes.

    errors    KernelUnavailable with the compiler's own first lines, or without a temporary folder to compile in
    """
    with _private_folder(code.name) as folder:
        target = folder / f"{code.name}.so"
        command = [compiler.path, *FLAGS, f"-I{code.include}", str(code.path), "-o", str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(f"{code.path.name}: {compiler.path} did not finish: {error}") from error
        if done.returncode != 0:
            lines = "\n".join(done.stderr.strip().splitlines()[:20])
            raise KernelUnavailable(f"{code.path.name}: {compiler.path} gave exit status {done.returncode}:\n{lines}")
        return target.read_bytes()


def _load(name: str, binary: Binary) -> ctypes.CDLL:
    """Load a verified library; where no folder keeps it, or its folder forbids running code, from a private copy."""
    if binary.path is not None:
        with suppress(OSError):
            return ctypes.CDLL(str(binary.path))
    with _private_folder(name) as folder:
        path = folder / f"{name}.so"
        path.write_bytes(binary.content)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelUnavailable(f"{name}: the compiled library cannot be loaded: {error}") from error


@contextmanager
def _private_folder(name: str) -> Iterator[Path]:
    """A new folder of this process's own for a library's file, gone after the with-block.

    errors    KernelUnavailable if none can be written
    """
    try:
        with tempfile.TemporaryDirectory(prefix="kerneltable-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise KernelUnavailable(f"{name}: no temporary folder for compiled code can be written: {error}") from error
