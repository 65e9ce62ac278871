"""Where compiled code is kept and whether compiling is allowed: one value that the caller gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """How this process gets its binaries.

    folder      where they are kept and looked for; None: the user's own cache folder
    prefilled   further folders to look in, never written, e.g. one that an image was built with
    compile     False forbids compiling: then a binary that is in no folder is a refusal
    timeout_s   seconds that one compilation, or the wait for another process that compiles the same, may take
    """

    folder: Path | None = None
    prefilled: tuple[Path, ...] = ()
    compile: bool = True
    timeout_s: float = 300.0

    def home(self) -> Path | None:
        """The folder that is written: the given one, or kerneltable's own in the user's home; None without a home."""
        if self.folder is not None:
            return self.folder
        try:
            return Path.home() / ".cache" / "kerneltable"
        except RuntimeError:  # a container's arbitrary user: no HOME, and no entry in the list of users
            return None

    def folders(self) -> tuple[Path, ...]:
        """Where binaries are looked for, in order."""
        home = self.home()
        return self.prefilled if home is None else (home, *self.prefilled)


class _Active:
    """The settings of this process: threads that bind layers later must see what the command line said."""

    settings = CompileSettings()


def active() -> CompileSettings:
    """The settings in force."""
    return _Active.settings


def activate(settings: CompileSettings) -> None:
    """Put settings in force for the whole process; binaries that are already loaded stay loaded."""
    _Active.settings = settings


@contextmanager
def activated(settings: CompileSettings) -> Iterator[None]:
    """Put settings in force for a with-block."""
    before = _Active.settings
    _Active.settings = settings
    try:
        yield
    finally:
        _Active.settings = before
