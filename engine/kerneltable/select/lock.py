"""A lock: what a table decides on some devices, exactly, so that a rollout can be held against it later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Table
from kerneltable.select.facts import from_facts, to_facts
from kerneltable.select.region_text import box_json, whole
from kerneltable.select.regions import winners
from kerneltable.select.space import space_of

LOCK = 1
_LOCAL = ("index", "memory_gib", "sm_count", "shared_memory_kib")
"""Facts that differ between machines of one kind and that no predicate asks about."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is no longer as the lock says. what: "table", "decision", "package" or "lock" """

    what: str
    message: str


def lock_of(table: Table, devices: Sequence[Device], packages: Mapping[str, str]) -> dict[str, Any]:
    """The lock as JSON-able values: digests of the layers, versions, and who wins which problems on each device.

    packages  distribution name -> version of what is installed; empty to leave versions open
    """
    named = _named(devices)
    content = {
        "table": {"digest": table.digest, "layers": [{"name": x.name, "sha256": x.sha256} for x in table.layers]},
        "packages": dict(sorted(packages.items())),
        "devices": {name: _facts(device) for name, device in named.items()},
        "decisions": {name: _decisions(table, device) for name, device in named.items()},
    }
    return {"format": 1, "lock": LOCK, "digest": digest_of(content), **content}


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a lock's content: equal on all machines with equal tables, versions and kinds of device."""
    counted = {name: content[name] for name in ("packages", "devices", "decisions")}
    counted["layers"] = [layer["sha256"] for layer in content["table"]["layers"]]  # a file's name decides nothing
    return sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def read_lock(text: str, where: str) -> dict[str, Any]:
    """The content of a lock file; ProblemError when it is none."""
    try:
        found = json.loads(text)
        sound = found["lock"] == LOCK and isinstance(found["table"]["digest"], str)
        sound = sound and all(isinstance(layer["sha256"], str) for layer in found["table"]["layers"])
        sound = sound and all(isinstance(found[name], dict) for name in ("packages", "devices", "decisions"))
        sound = sound and set(found["devices"]) == set(found["decisions"])
        sound = sound and all(isinstance(schemes, dict) for schemes in found["decisions"].values())
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise ProblemError(f"{where}: this is no lock of version {LOCK}; write it with `kerneltable lock -o FILE`")
    return dict(found)


def drifts(lock: Mapping[str, Any], table: Table, packages: Mapping[str, str], where: str) -> Iterator[Drift]:
    """Everything that is not as the lock says, with this table and these packages.

    packages  what is installed here; only versions that the lock states are compared
    errors    ProblemError when a device of the lock is no device
    """
    if lock.get("digest") != digest_of(lock):
        yield Drift("lock", "the lock was changed after it was written: its digest does not fit its content")
    before, now = _layers(lock["table"]), [layer.sha256 for layer in table.layers]
    if before != now:
        names = [layer.name for layer in table.layers if layer.sha256 not in before]
        what = f"{', '.join(names)} changed" if names else "a layer is missing or stands elsewhere"
        yield Drift("table", f"the table is not the locked one: {what}; {len(before)} layers then, {len(now)} now")
    for name, facts in lock["devices"].items():
        device = from_facts(facts, table, f"{where}: devices.{name}")
        yield from _changed(name, lock["decisions"][name], _decisions(table, device))
    for name, version in lock["packages"].items():
        if packages.get(name) != version:
            yield Drift("package", f"package {name}: {version} is locked; found {packages.get(name, 'none')}")


def _changed(device: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Drift]:
    for scheme in dict.fromkeys((*before, *now)):
        if before.get(scheme) != now.get(scheme):
            was, has = _kernels(before.get(scheme)), _kernels(now.get(scheme))
            same = "the same kernels for other problems" if was == has else f"{was} then, {has} now"
            yield Drift("decision", f"{scheme} on {device}: {same}")


def _kernels(winners: Any) -> str:
    if not isinstance(winners, list):
        return "not decided"
    return ", ".join(str(won.get("kernel") or "no kernel") for won in winners if isinstance(won, dict)) or "no kernel"


def _layers(table: Mapping[str, Any]) -> list[str]:
    return [layer["sha256"] for layer in table["layers"]]


def _named(devices: Sequence[Device]) -> dict[str, Device]:
    """Each device by a name that no other has."""
    found: dict[str, Device] = {}
    for device in devices:
        name = device.name or f"{device.platform}:{device.architecture or 'unknown'}"
        if found.get(name, device) != device:
            name = next(other for i in range(2, len(devices) + 2) if (other := f"{name} ({i})") not in found)
        found[name] = device
    return found


def _facts(device: Device) -> dict[str, Any]:
    return {name: fact for name, fact in to_facts(device).items() if name not in _LOCAL}


def _decisions(table: Table, device: Device) -> dict[str, Any]:
    """Scheme -> the winners in the order of the route, each with the problems that it wins."""
    found: dict[str, Any] = {}
    for scheme in table.schemes:
        space = space_of(scheme, table)
        every = whole(space, table)
        found[scheme] = [
            {"kernel": won.kernel, "where": [box_json(space, box, every) for box in won.boxes]}
            for won in winners(table, device, space, every)
        ]
    return found
