"""Devices by name: what a DGX Spark would do is answered on a laptop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from kerneltable.errors import ProblemError
from kerneltable.model import Capability, Device, Platform, Table
from kerneltable.names import hint, nearest
from kerneltable.select.versions import capability_of, distribution

ASSUMED = ("torch", "triton", "kerneltable")
ASSUMED_ON = {"cuda": ("cuda-bindings",)}
"""What torch's own build for a platform brings along."""


def device(name: str, table: Table, *, packages: Mapping[str, str | None] | None = None) -> Device:
    """A device by a name of the table: "h200", "sm121", "cuda:sm121", "cuda:13.0", "gfx942:sramecc+:xnack-".

    Case, and space or underscore for hyphen, do not matter; suffixes of compiler targets ("sm_90a") and of AMD target
    ids (":xnack-") are dropped.
    packages  distribution name -> version (None: assumed, fits every spec); without it torch with what comes along
              with it, triton and kerneltable are assumed
    returns   a Device; "cuda:13.0" has no architecture when the table describes no such chip
    errors    ProblemError with the nearest name, or when a name stands for several chips
    """
    if not isinstance(name, str) or not name.strip() or len(name) > 100:
        step = "" if isinstance(name, str) else "; kerneltable.current_device() describes the present one"
        raise ProblemError(f"a device is named by 1 to 100 characters, such as 'h200'; found {_found(name)}{step}")
    prefix, _, rest = name.strip().partition(":")
    platform = table.platforms.get(prefix.strip().lower())
    platforms = [platform] if platform else list(table.platforms.values())
    chip = rest if platform else name
    found = [(p, architecture) for p in platforms if (architecture := _architecture(p, chip)) is not None]
    if len(found) > 1:
        ways = " or ".join(f"'{p.name}:{chip.strip()}'" for p, _ in found)
        raise ProblemError(f"device '{name}' exists on several platforms; say {ways}")
    if found:
        return _described(found[0][0], found[0][1], name.strip(), _assumed(found[0][0], packages))
    capability = capability_of(chip.strip().lower())
    if platform is not None and capability is not None and _has_capabilities(platform):
        return Device(platform.name, None, name.strip(), capability, _assumed(platform, packages))
    raise _unknown(name, chip, platform, table)


def _found(value: object) -> str:
    """What was given as a name: a text as such, anything else with its type."""
    if isinstance(value, str):
        return repr(value[:100])
    kind = type(value)
    owner = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{owner}{kind.__qualname__} {str(value)[:100]!r}"


def _assumed(platform: Platform, packages: Mapping[str, str | None] | None) -> Mapping[str, str | None]:
    if packages is not None:
        return packages
    return dict.fromkeys((*ASSUMED, *ASSUMED_ON.get(platform.name, ())))


def _described(platform: Platform, architecture: str, name: str, packages: Mapping[str, str | None]) -> Device:
    chip = platform.architectures[architecture]
    return Device(
        platform.name, architecture, name, chip.capability, packages, shared_memory_kib=chip.shared_memory_kib
    )


def architecture_of(platform: Platform, capability: Capability | None) -> str | None:
    """The platform's architecture with exactly this capability, or None."""
    if capability is None:
        return None
    return next((name for name, chip in platform.architectures.items() if chip.capability == capability), None)


def with_packages(known: Device, text: str) -> Device:
    """The device with more installed: "flashinfer,deep_gemm==2.1,_C::cutlass_scaled_mm", or "all".

    An item with "::" is a registered op; a package without a version is assumed to fit every spec.
    errors    ProblemError for an item that is neither NAME, NAME==VERSION nor NAMESPACE::OP, for a package of two
              versions, and for "all" beside other items: with it every spec is met, whatever the version
    """
    items = [part.strip() for part in text.split(",")]
    if {item.lower() for item in items} == {"all"}:
        return replace(known, assume_all=True)
    if "all" in map(str.lower, items):
        wanted = "'all' was wanted alone, since it fits every version"
        raise ProblemError(f"installed packages: {wanted}; found {text[:100]!r}; leave 'all' out, or the rest")
    packages: dict[str, str | None] = {}
    ops = set(known.ops)
    for item in items:
        parts = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:==([0-9][A-Za-z0-9.+!_-]{0,99}))?\Z", item)
        if re.match(r"[A-Za-z_]\w{0,99}::[A-Za-z_][\w.]{0,99}\Z", item):
            ops.add(item)
        elif parts:
            name = distribution(parts[1])
            if packages.setdefault(name, parts[2]) != parts[2]:
                found = " and ".join(version or "no version" for version in (packages[name], parts[2]))
                raise ProblemError(f"installed packages: '{name}': one version was wanted; found {found}; keep one")
        else:
            raise ProblemError(
                "installed packages are a comma list of NAME, NAME==VERSION or NAMESPACE::OP, or 'all'; "
                f"found {item[:100]!r}"
            )
    return replace(known, packages={**known.packages, **packages}, ops=frozenset(ops))


def _architecture(platform: Platform, chip: str) -> str | None:
    """The architecture that a chip's name, target or capability stands for on this platform."""
    for name in _spellings(chip):
        if name in platform.architectures:
            return name
        if name in platform.devices:
            return platform.devices[name]
    return architecture_of(platform, capability_of(chip.strip().lower()))


def _spellings(chip: str) -> list[str]:
    """A name as written, as a table spells it, and as the compiler target or AMD target id that it may be."""
    plain = chip.strip().lower()
    hyphened = re.sub(r"[\s_]+", "-", plain)
    target = re.sub(r"\A(?:sm|compute)_?([0-9]+)[af]?\Z", r"sm\1", plain)
    amd = re.sub(r"\A(gfx[0-9a-f]+)(?::(?:sramecc|xnack)[+-])+\Z", r"\1", plain)
    return [plain, hyphened, target, amd]


def _has_capabilities(platform: Platform) -> bool:
    return any(chip.capability is not None for chip in platform.architectures.values())


def _unknown(name: str, chip: str, platform: Platform | None, table: Table) -> ProblemError:
    platforms = [platform] if platform else list(table.platforms.values())
    names = [known for p in platforms for known in (*p.devices, *p.architectures)]
    where = f" on platform '{platform.name}'" if platform else ""
    if platform is None and ":" in chip:
        prefix = chip.partition(":")[0].strip()
        wanted = f"a platform was wanted before ':'; found {prefix!r}; {hint(prefix, table.platforms)}"
        return ProblemError(f"unknown device {name!r}: {wanted}; or leave out what follows the name")
    if platform is None and nearest(chip, names) is None:
        step = "`kerneltable show platforms` lists the names"
    else:
        step = hint(chip.strip(), names)
    unknown_chip = next((p.name for p in platforms if _has_capabilities(p)), None)
    also = f"; for a chip that the table does not describe say '{unknown_chip}:13.0'" if unknown_chip else ""
    return ProblemError(f"unknown device {name!r}{where}; {step}{also}")
