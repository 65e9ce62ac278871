"""Compiled code by content: found and verified, or made once by whichever process comes first.

Readers take no lock. Makers hold a file lock that ends with the process, so a killed one blocks nobody; where locks do
not work, two processes may compile the same code, and the rename of cache_entry decides whose is kept.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kerneltable.errors import KernelUnavailable
from kerneltable.ops.cache_entry import WRITABLE_BY_OTHERS, Binary, Recipe, folder_fault, publish, read, sweep
from kerneltable.ops.settings import CompileSettings

Build = Callable[[], bytes]


def fetch(recipe: Recipe, settings: CompileSettings, build: Build | None) -> Binary:
    """The binary of a recipe, from a folder or freshly built.

    build    compiles and returns the binary; None when there is no compiler
    returns  its path is None when no folder can keep it: what is loaded from bytes needs none
    errors   KernelUnavailable if the binary is in no folder and cannot be built; whatever build raises
    """
    found = find(recipe, settings)
    if found is not None:
        return found
    if build is None or not settings.compile:
        reason = "compiling is switched off" if not settings.compile else "there is no compiler"
        places = ", ".join(map(str, settings.folders())) or f"any folder ({folder_fault(None)})"
        raise KernelUnavailable(
            f"{recipe.name} for {recipe.architecture}: {reason} and no binary of it is in {places}; "
            "`kerneltable build` makes them ahead of time"
        )
    home = settings.home()
    fault = folder_fault(home)
    if home is not None and fault is None:
        try:
            return _make(home, recipe, settings, build)
        except OSError as error:
            fault = str(error)
    logging.getLogger(__name__).warning("compiled code is kept for this process only: %s", fault)
    return Binary(None, build(), fresh=True)


def find(recipe: Recipe, settings: CompileSettings) -> Binary | None:
    """A verified binary of the recipe in the settings' folders, or None. Without a compiler any compiler's will do."""
    for folder in filter(_trusted, settings.folders()):
        for entry in _entries(folder, recipe):
            found = read(entry, recipe)
            if isinstance(found, Binary):
                return found
            if found != "absent":
                logging.getLogger(__name__).warning("compiled code in %s is not used: %s", entry, found)
    return None


def _make(folder: Path, recipe: Recipe, settings: CompileSettings, build: Build) -> Binary:
    with _lock(folder / f".{recipe.entry}.lock", settings.timeout_s) as held:
        found = read(folder / recipe.entry, recipe)
        if isinstance(found, Binary):
            return found
        if held:
            sweep(folder, recipe)
        content = build()
        made = read(publish(folder, recipe, content), recipe)
    return replace(made, fresh=True) if isinstance(made, Binary) else Binary(None, content, fresh=True)


@contextmanager
def _lock(path: Path, timeout_s: float) -> Iterator[bool]:
    """Hold the lock file, waiting at most timeout_s; False when it cannot be had, and the work goes on without."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield _acquire(descriptor, time.monotonic() + timeout_s)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        except OSError:
            return False  # a file system without locks


def _trusted(folder: Path) -> bool:
    """True when only this user or root can have put entries into the folder."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & WRITABLE_BY_OTHERS


def _entries(folder: Path, recipe: Recipe) -> list[Path]:
    if recipe.compiler:
        return [folder / recipe.entry]
    return sorted(folder.glob(f"{recipe.stem}-*"))
