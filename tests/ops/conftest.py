"""Fixtures of the compiled CPU code: a cache folder of its own, and each instruction path that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import has_path
from kerneltable.ops.settings import CompileSettings, activated


@pytest.fixture(scope="module")
def compiled_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile into a folder of this test run, not into the user's."""
    with activated(CompileSettings(folder=tmp_path_factory.mktemp("compiled"))):
        cpp.load_library.cache_clear()
        yield
        cpp.load_library.cache_clear()


@pytest.fixture(params=("portable", "avx2", "avx512", "vbmi", "amx"))
def path(request: pytest.FixtureRequest, compiled_here: None) -> str:
    """An instruction path, forced."""
    if not has_path(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return str(request.param)
