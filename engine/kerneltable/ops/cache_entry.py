"""One entry of the compiled-code cache: a folder with the binary and a manifest, published whole by one rename.

A binary is code that this process will run. So an entry counts only if nobody else could have written it and if its
bytes are those that its maker wrote down; anything else is treated as absent and made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a binary is made from; two equal recipes give the same code.

    name           file stem of the source
    suffix         of the binary: ".so", ".cubin"
    source         SHA-256 over source, headers and flags
    architecture   what it runs on: "x86_64", "sm_90a"
    compiler       full version text of the compiler; "" stands for any
    """

    name: str
    suffix: str
    source: str
    architecture: str
    compiler: str

    @property
    def stem(self) -> str:
        """The part of an entry's name that does not depend on the compiler."""
        digest = hashlib.sha256(
            "\0".join((str(FORMAT), self.source, self.architecture, self.suffix)).encode()
        ).hexdigest()
        return f"{self.name}-{digest[:24]}"

    @property
    def entry(self) -> str:
        """The name of the entry's folder."""
        return f"{self.stem}-{hashlib.sha256(self.compiler.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Binary:
    """A verified binary: its file, and its bytes as they were when verified.

    path    None: no folder could keep it, so that it is this process's alone
    fresh   it was compiled just now, not found
    """

    path: Path | None
    content: bytes
    fresh: bool = field(default=False, compare=False)


def read(entry: Path, recipe: Recipe) -> Binary | str:
    """The binary of an entry, verified, or why the entry does not count: "absent", or what is wrong with it."""
    try:
        _refuse_foreign(os.lstat(entry), entry, folder=True)
        manifest = json.loads(_read_own(entry / MANIFEST))
        wanted = {key: value for key, value in asdict(recipe).items() if key != "compiler" or value}
        found = {key: manifest["recipe"][key] for key in wanted}
        if manifest["format"] != FORMAT or found != wanted:
            return "its manifest describes another binary"
        path = entry / f"{recipe.name}{recipe.suffix}"
        content = _read_own(path)
        if len(content) != manifest["size"] or hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            return "its content is not what its manifest says"
    except FileNotFoundError:
        return "incomplete" if entry.is_dir() else "absent"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return Binary(path, content)


def publish(folder: Path, recipe: Recipe, content: bytes) -> Path:
    """Write an entry beside its place and move it there with one rename.

    returns  the entry's folder, holding content or, if another process was first, that process's good entry
    errors   OSError if the folder cannot be written
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{recipe.entry}.", dir=folder))
    try:
        _write(staging / f"{recipe.name}{recipe.suffix}", content)
        manifest = {
            "format": FORMAT,
            "recipe": asdict(recipe),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        _write(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
        _move(staging, folder / recipe.entry, recipe)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / recipe.entry


def sweep(folder: Path, recipe: Recipe) -> None:
    """Remove what killed processes left of this recipe. Only for the holder of the recipe's lock."""
    for left in folder.glob(f".{recipe.entry}.*"):
        if not left.name.endswith(".lock"):
            shutil.rmtree(left, ignore_errors=True)


def folder_fault(folder: Path | None) -> str | None:
    """Why compiled code in this folder cannot be trusted or kept, or None; makes the folder, for this user alone.

    folder   None: the user's own, where the user has no home
    """
    if folder is None:
        return f"user {os.getuid()} has no home folder, and HOME names none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        return str(error)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a folder"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & WRITABLE_BY_OTHERS:
        return f"{folder} can be written by others (mode {stat.S_IMODE(found.st_mode):o}); chmod it to 700"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    return None


def _move(staging: Path, place: Path, recipe: Recipe) -> None:
    for _ in range(16):
        try:
            os.rename(staging, place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                raise
        if isinstance(read(place, recipe), Binary):
            return
        _discard(place)
    raise OSError(errno.EBUSY, "a bad entry could not be replaced", str(place))


def _discard(place: Path) -> None:
    """Move a bad entry out of the way, whatever it is, then remove it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        os.rename(place, aside / "bad")
    except FileNotFoundError:
        pass  # another process was quicker
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign(found: os.stat_result, path: Path, *, folder: bool) -> None:
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
        raise PermissionError(f"{path} is a link or of another type")
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to user {found.st_uid}")
    if found.st_mode & WRITABLE_BY_OTHERS:
        raise PermissionError(f"{path} can be written by others")


def _read_own(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        _refuse_foreign(os.fstat(file.fileno()), path, folder=False)
        return file.read()


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
