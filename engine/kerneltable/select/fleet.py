"""The devices that proofs go through: every architecture of the table, and a chip that nobody has described yet."""

from __future__ import annotations

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Platform, Table
from kerneltable.select.devices import device


def architectures(table: Table) -> tuple[Device, ...]:
    """One device for each architecture, in the order of the table, with torch, triton and kerneltable assumed."""
    return tuple(
        device(_asked(table, platform, chip), table)
        for platform in table.platforms.values()
        for chip in platform.architectures
    )


def future_chips(table: Table) -> tuple[Device, ...]:
    """A chip with a capability above all that the table names, for each platform that counts capabilities."""
    found = []
    for platform in table.platforms.values():
        known = [chip.capability for chip in platform.architectures.values() if chip.capability is not None]
        if known:
            ends = [*known, *(family.maximum for family in platform.families.values())]
            found.append(device(f"{platform.name}:{max(ends)[0] + 1}.0", table))
    return tuple(found)


def _asked(table: Table, platform: Platform, chip: str) -> str:
    """The name by which `--device` finds this architecture: its own, with the platform where that is needed."""
    try:
        found = device(chip, table)
    except ProblemError:
        return f"{platform.name}:{chip}"
    return chip if (found.platform, found.architecture) == (platform.name, chip) else f"{platform.name}:{chip}"
