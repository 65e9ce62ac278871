"""The files of a checkpoint directory: JSON and safetensors, single or in shards. Reads data, follows no path out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kerneltable.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

LONGEST_CONFIG = 16 << 20
"""Bytes that a config may have; the longest known (every expert named in an ignore list) has about 2 MB."""

LONGEST_INDEX = 128 << 20
"""Bytes that an index may have; 100,000 tensors make about 12 MB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as its shard's header describes it: dtype in safetensors' spelling ("F8_E4M3"), shape, file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_json(path: Path, longest: int = LONGEST_CONFIG) -> Mapping[str, object]:
    """Read a JSON object from a regular file of at most `longest` bytes.

    errors   CheckpointError naming the file: absent, not a file, no right to read it, too long, not UTF-8, not JSON,
             not an object
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: wanted a file; found {'no regular file' if path.exists() else 'nothing'}")
    try:
        with path.open("rb") as stream:
            raw = stream.read(longest + 1)
        if len(raw) > longest:
            raise CheckpointError(f"{path}: longer than {longest >> 20} MiB; no config is")
        found = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: wanted a JSON object; found a {type(found).__name__}")
    return found


def read_entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the checkpoint, from the shards' headers; no tensor is read.

    The index decides when there is one; else model.safetensors; else all *.safetensors of the folder.
    errors   CheckpointError naming the file: missing, truncated, listed outside the folder, or a tensor in two files
    """
    index = folder / INDEX
    if index.exists():
        return _indexed(folder, index)
    single = folder / SINGLE
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: wanted {SINGLE}, {INDEX} or *.safetensors; found none of them")
    return read_headers(files)


def read_headers(files: Iterable[Path]) -> dict[str, Entry]:
    """Every tensor of these files, from their headers; no tensor is read.

    errors   CheckpointError naming the file: not safetensors, truncated, or a tensor in two files
    """
    entries: dict[str, Entry] = {}
    for file in files:
        for entry in _header(file):
            if entry.name in entries:
                raise CheckpointError(
                    f"{file}: tensor '{entry.name}' is in {entries[entry.name].file.name} too; keep one"
                )
            entries[entry.name] = entry
    return entries


def read_tensors(entries: Mapping[str, Entry]) -> dict[str, torch.Tensor]:
    """Read these tensors to main memory, under the mapping's keys.

    errors   CheckpointError naming the file that cannot be read
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({entry.file for entry in entries.values()}):
        with _opened(file) as shard:
            for key, entry in entries.items():
                if entry.file == file:
                    tensors[key] = shard.get_tensor(entry.name)
    return tensors


def _indexed(folder: Path, index: Path) -> dict[str, Entry]:
    """Entries of the index, each looked up in the header of the shard that it names."""
    weight_map = read_json(index, LONGEST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: wanted an object 'weight_map' with tensor -> file; found none")
    headers: dict[str, dict[str, Entry]] = {}
    for file in sorted({_plain(file, index) for file in weight_map.values()}):
        headers[file] = {entry.name: entry for entry in _header(folder / file)}
    entries = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(f"{folder / file}: tensor '{name[:200]}' is missing; {index.name} says it is there")
        entries[name] = headers[file][name]
    return entries


def _plain(file: object, index: Path) -> str:
    """A shard's name if it is a plain file name; a path of any kind could lead out of the folder."""
    sound = isinstance(file, str) and file == Path(file).name and "\\" not in file and "\0" not in file
    if not sound or not isinstance(file, str) or not file.endswith(".safetensors"):
        raise CheckpointError(f"{index}: a shard must be a plain *.safetensors file name; found {str(file)[:200]!r}")
    return file


def _header(file: Path) -> Iterator[Entry]:
    with _opened(file) as shard:
        for name in shard.keys():  # noqa: SIM118  a safetensors file is not a mapping
            part = shard.get_slice(name)
            yield Entry(name, str(part.get_dtype()), tuple(part.get_shape()), file)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, its library's and the system's errors turned into a CheckpointError that names it."""
    if not file.is_file():
        raise CheckpointError(f"{file}: wanted a safetensors file; found nothing; is the download complete?")
    try:
        with file.open("rb"):  # safetensors says of a file that this user may not read that it is not there
            pass
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        with safe_open(str(file), framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {error}; is the download complete?") from None


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    """What the system says of a file that is there, in words."""
    step = "; give this user the right to read it" if isinstance(error, PermissionError) else ""
    return CheckpointError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}{step}")
