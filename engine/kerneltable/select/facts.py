"""Device <-> JSON facts: what `env --json` writes on one machine and `--facts FILE` reads on another."""

from __future__ import annotations

import json
from typing import Any

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Table
from kerneltable.names import hint
from kerneltable.select.devices import architecture_of
from kerneltable.select.versions import capability_of

FORMAT = 1


def to_facts(device: Device) -> dict[str, Any]:
    """A device as JSON-able facts; a capability is a string ("9.0"), an assumed package has version null."""
    capability = device.capability
    return {
        "platform": device.platform,
        "architecture": device.architecture,
        "name": device.name,
        "capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "packages": dict(sorted(device.packages.items())),
        "ops": sorted(device.ops),
        "assume_all": device.assume_all,
        "sm_count": device.sm_count,
        "shared_memory_kib": device.shared_memory_kib,
        "memory_gib": device.memory_gib,
        "index": device.index,
    }


def from_facts(facts: Any, table: Table, where: str = "facts") -> Device:
    """The device that facts describe: the object that `env --json` prints, or its `device` part alone.

    The architecture is the table's: facts of a chip that was unknown where they were taken are looked up again.
    errors    ProblemError naming the fact, what was wanted and what was found
    """
    if isinstance(facts, dict) and "device" in facts:
        if facts.get("format") != FORMAT:
            raise ProblemError(f"{where}: format must be {FORMAT}; found {_short(facts.get('format'))}")
        facts = facts["device"]
    if not isinstance(facts, dict):
        raise ProblemError(f"{where}: a JSON object was wanted; found {_short(facts)}")
    unknown = sorted(set(facts) - set(_FACTS))
    if unknown:
        raise ProblemError(f"{where}: unknown fact {_short(unknown[0])}; {hint(unknown[0], _FACTS)}")
    for name, (wanted, fits) in _FACTS.items():
        if name in facts and not fits(facts[name]):
            raise ProblemError(f"{where}: {name} must be {wanted}; found {_short(facts[name])}")
    if "platform" not in facts:
        raise ProblemError(f"{where}: the fact 'platform' is missing; `kerneltable env --json` writes all of them")
    values = {**facts, "ops": frozenset(facts.get("ops", ()))}
    text = facts.get("capability")
    values["capability"] = capability_of(text) if text else None
    values["architecture"] = _known_architecture(values, table)
    return Device(**values)


def read_facts(text: str, table: Table, where: str) -> Device:
    """The device described by the text of a facts file; ProblemError when it is no JSON."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ProblemError(f"{where}{place}: this is no JSON; write the file with `kerneltable env --json`") from None
    return from_facts(facts, table, where)


def _known_architecture(values: dict[str, Any], table: Table) -> str | None:
    platform = table.platforms.get(values["platform"])
    if platform is None:
        return None
    name = values.get("architecture")
    return name if name in platform.architectures else architecture_of(platform, values["capability"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 300


def _is_size(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**31)


_FACTS: dict[str, Any] = {
    "platform": ("a text", _is_text),
    "architecture": ("a text or null", lambda value: value is None or _is_text(value)),
    "name": ("a text", _is_text),
    "capability": (
        'a text such as "9.0", or null',
        lambda value: value is None or (_is_text(value) and capability_of(value) is not None),
    ),
    "packages": (
        "an object of name to version or null",
        lambda value: isinstance(value, dict) and all(v is None or _is_text(v) for v in value.values()),
    ),
    "ops": ("a list of texts", lambda value: isinstance(value, list) and all(_is_text(v) for v in value)),
    "assume_all": ("true or false", lambda value: isinstance(value, bool)),
    "sm_count": ("a whole number or null", _is_size),
    "shared_memory_kib": ("a whole number or null", _is_size),
    "memory_gib": (
        "a number of at least 0, or null",
        lambda value: value is None or (type(value) in (int, float) and 0 <= value < 2**31),
    ),
    "index": ("a whole number or null", _is_size),
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
