"""Kernels of csrc/cuda compiled for the CPU with the stand-ins in `warps`: a source runs in a test as it is written."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from kerneltable.ops import cpp
from kerneltable.ops.sources import csrc_folder

WARPS = Path(__file__).parent / "warps"


def build(entry: str, defines: dict[str, int], folder: Path) -> ctypes.CDLL:
    """A library with the function `run` of warps/<entry>.cpp; KT_OUT is f32, for which no source needs assembly."""
    compiler = cpp.find_compiler()
    if isinstance(compiler, str):
        pytest.skip(f"no C++ compiler: {compiler}")
    library = folder / f"{entry}{abs(hash(tuple(sorted(defines.items()))))}.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-DKT_OUT=2"]
    places = [f"-I{place}" for place in (WARPS, csrc_folder() / "cuda", csrc_folder() / "include")]
    numbers = [f"-D{name}={value}" for name, value in defines.items()]
    source = str(WARPS / f"{entry}.cpp")
    subprocess.run([compiler.path, *flags, *places, *numbers, source, "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """What a kernel takes for a tensor, or for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
