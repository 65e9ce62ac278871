"""Finding device code: the package's own data, else the checkout that holds this file. Never the working directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kerneltable.errors import KernelUnavailable

HEADERS = {".cpp": (".h",), ".cu": (".h", ".cuh")}
"""Suffixes of the headers that a source of this suffix may include."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of csrc and the folder of headers that it may include."""

    path: Path
    include: Path

    @property
    def name(self) -> str:
        return self.path.stem

    def digest(self, flags: tuple[str, ...]) -> str:
        """SHA-256 over the file, every header that it may include, by name and content, and the flags."""
        suffixes = HEADERS.get(self.path.suffix, ())
        headers = sorted(path for path in self.include.iterdir() if path.suffix in suffixes)
        total = hashlib.sha256()
        for path in (self.path, *headers):
            total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        total.update("\0".join(flags).encode())
        return total.hexdigest()


def csrc_folder() -> Path:
    """The folder csrc.

    errors   KernelUnavailable if this installation carries none
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "_data" / "csrc", package.parents[1] / "csrc")
    for place in places:
        if (place / "include").is_dir():
            return place
    raise KernelUnavailable(
        f"device code: folder csrc not found; looked in {places[0]} and {places[1]}; reinstall kerneltable"
    )


def source(relative: str) -> Source:
    """A file of csrc by its path there, e.g. "cpu/fp8_linear.cpp".

    errors   KernelUnavailable if there is no such file
    """
    folder = csrc_folder()
    path = folder / relative
    if not path.is_file():
        raise KernelUnavailable(
            f"device code: wanted {relative}; found no such file in {folder}; reinstall kerneltable"
        )
    return Source(path, folder / "include")
