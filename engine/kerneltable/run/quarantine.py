"""Kernels that lost a device or hung, remembered on disk, so that the next process leaves them alone from the start.

A process whose device is lost has to be started again, and without a memory the same kernel loses the device again.
Nothing is remembered unless a folder is given: `shared_ledger().keep(Quarantine(folder))`. An entry is a file of its
own, so processes do not overwrite each other's; who deletes it lets the kernel be tried again. An entry speaks for the
same kind of device with the same packages installed: after an upgrade the kernel is tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kerneltable import __version__
from kerneltable.errors import KernelTableError
from kerneltable.model import Device
from kerneltable.ops.cache_entry import folder_fault

FORMAT = 1
LARGEST, MOST = 1 << 16, 1000
"""Bytes of an entry, and entries, that are read."""

LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One kernel that is left alone on one kind of device.

    versions   package -> version (None: not known) of everything that was probed there, kerneltable among them
    when       UTC, ISO 8601
    """

    kernel: str
    platform: str
    architecture: str | None
    device: str
    versions: dict[str, str | None]
    reason: str
    when: str

    def speaks_for(self, kernel: str, device: Device) -> bool:
        """Whether it is about this kernel on such a device, as it is installed now.

        Packages that were not probed both times, since a table asks for others, do not count.
        """
        if (self.kernel, self.platform, self.architecture) != (kernel, device.platform, device.architecture):
            return False
        now = versions_on(device)
        return self.device == device.name and all(now.get(name, v) == v for name, v in self.versions.items())


def versions_on(device: Device) -> dict[str, str | None]:
    """package -> version of what was probed, with kerneltable's own."""
    return {**device.packages, "kerneltable": __version__}


def entry_for(kernel: str, device: Device, reason: str) -> Entry:
    """The entry that says: leave this kernel alone on devices like this one."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    place = device.platform, device.architecture, device.name
    return Entry(kernel, *place, versions_on(device), reason[:LONGEST_REASON], now)


class Quarantine:
    """The entries of a folder, read once; new ones are written at once.

    errors   KernelTableError when the folder cannot be made or written, or others can write to it
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        fault = folder_fault(self.folder)
        if fault is not None:
            raise KernelTableError(f"quarantine: wanted a folder of this user's own; found: {fault}; give another one")
        self.entries = _read(self.folder)

    def why(self, kernel: str, device: Device) -> str | None:
        """Why a kernel is left alone on a device; None when nothing speaks against it."""
        found = next((entry for entry in self.entries if entry.speaks_for(kernel, device)), None)
        return None if found is None else f"{found.reason} (on {found.when}; delete it in {self.folder} to try again)"

    def add(self, kernel: str, device: Device, reason: str) -> None:
        """Remember a kernel. What prevents that is logged: the process has a worse error to tell."""
        entry = entry_for(kernel, device, reason)
        self.entries = (*self.entries, entry)
        try:
            _write(self.folder / _name_of(entry), {"format": FORMAT, **asdict(entry)})
        except OSError as error:
            _warn("%s is not kept in quarantine for the next start: %s", kernel, error)


def _name_of(entry: Entry) -> str:
    """A file name that the same kernel on the same kind of device has again."""
    about = json.dumps([entry.kernel, entry.platform, entry.architecture, entry.device, entry.versions], sort_keys=True)
    kernel = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in entry.kernel[:80])
    return f"{kernel}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, for this user alone."""
    handle, name = tempfile.mkstemp(prefix=".entry-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _read(folder: Path) -> tuple[Entry, ...]:
    """The entries of a folder; a file that is none is left out and logged."""
    found = []
    for path in sorted(folder.glob("*.json"))[:MOST]:
        try:
            with path.open("rb") as file:
                facts = json.loads(file.read(LARGEST))
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            entry = Entry(**facts)
            if not (isinstance(entry.versions, dict) and isinstance(entry.reason, str)):
                raise TypeError("a value of another type")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _warn("%s is no entry of a quarantine and is left out: %s: %s", path, type(error).__name__, error)
        else:
            found.append(entry)
    return tuple(found)


def _warn(text: str, *values: object) -> None:
    logging.getLogger(__name__).warning(text, *values)
