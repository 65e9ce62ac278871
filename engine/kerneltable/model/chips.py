"""Platforms as the table describes them, and devices to decide for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kerneltable.model.copying import reduce
from kerneltable.model.marks import Mark
from kerneltable.model.predicates import Capability


@dataclass(frozen=True, slots=True)
class Architecture:
    """One chip architecture as the table describes it.

    capability is None where the vendor has no such number; shared memory is what one block may use, in KiB;
    fp8 is the flavour of the chip's native FP8 ("fn" or "fnuz"), None without native FP8; target is what NVRTC compiles
    device code for ("sm_90a"), None where this project has no CUDA code for the chip.
    """

    name: str
    platform: str
    capability: Capability | None
    families: tuple[str, ...]
    features: frozenset[str]
    shared_memory_kib: int | None
    fp8: str | None
    mark: Mark
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A bounded range of capabilities, both ends included."""

    name: str
    minimum: Capability
    maximum: Capability
    mark: Mark


@dataclass(frozen=True, slots=True)
class Platform:
    """A vendor's stack: its architectures, bounded families and the names people use for devices."""

    name: str
    architectures: Mapping[str, Architecture]
    families: Mapping[str, Family]
    devices: Mapping[str, str]
    mark: Mark

    __reduce__ = reduce


@dataclass(frozen=True, eq=True)
class Device:
    """One device to decide for: named ("what would a DGX Spark do"), probed, or read from a facts file.

    architecture   the table's name for the chip ("sm121"), or None when the table does not know the chip
    capability     CUDA compute capability, None elsewhere
    packages       distribution name -> version, or None where the package is assumed, not looked at
    ops            registered torch ops, as "namespace::name"
    assume_all     True when every package and op is assumed to be installed
    sm_count, shared_memory_kib, memory_gib    measured facts, None when not measured
    """

    platform: str
    architecture: str | None
    name: str = ""
    capability: Capability | None = None
    packages: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    ops: frozenset[str] = frozenset()
    assume_all: bool = False
    sm_count: int | None = None
    shared_memory_kib: int | None = None
    memory_gib: float | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "packages", MappingProxyType(dict(self.packages)))
        facts = (self.platform, self.architecture, self.capability, self.name, self.ops, self.assume_all, self.index)
        object.__setattr__(self, "_hash", hash((facts, frozenset(self.packages.items()))))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    __reduce__ = reduce
