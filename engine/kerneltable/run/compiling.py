"""How this process gets its compiled device code: where it is kept, and whether compiling is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kerneltable.errors import KernelTableError
from kerneltable.ops.settings import CompileSettings, activate, activated, active

__all__ = ["CompileSettings", "activated", "active", "compile_settings", "set_compiling"]


def set_compiling(
    cache: str | Path | None = None, *, jit: bool = True, prebuilt: Iterable[str | Path] = ()
) -> CompileSettings:
    """Say how this process gets the code of csrc; call it before layers are bound. What is loaded stays loaded.

    cache     the folder where compiled code is kept and looked for; None: ~/.cache/kerneltable
    jit       False forbids compiling: a kernel whose binary is in no folder is then refused, with the reason. Triton
              compiles by itself and is not asked
    prebuilt  further folders to look in, never written, such as one that `kerneltable build --out` filled for an image
    returns   the settings, now in force for the whole process
    errors    KernelTableError for a path that is not absolute, or no folder
    """
    settings = compile_settings(cache, jit=jit, prebuilt=prebuilt)
    activate(settings)
    return settings


def compile_settings(
    cache: str | Path | None = None, *, jit: bool = True, prebuilt: Iterable[str | Path] = ()
) -> CompileSettings:
    """The settings that these words stand for, not in force yet; as in set_compiling."""
    folder = None if cache is None else _folder("cache", cache)
    return CompileSettings(folder=folder, prefilled=tuple(_folder("prebuilt", p) for p in prebuilt), compile=jit)


def _folder(name: str, given: str | Path) -> Path:
    """The folder of a path; code is run from it, so that the working directory must not decide which one it is."""
    path = Path(given)
    if not path.is_absolute():
        raise KernelTableError(f"{name}: an absolute path was wanted; found {str(given)[:200]!r}; write it out in full")
    if path.exists() and not path.is_dir():
        raise KernelTableError(f"{name}: a folder was wanted; {str(given)[:200]!r} is none; name another path")
    return path
