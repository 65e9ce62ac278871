"""What device code in CUDA and its launches know of a chip. All of it stands in the table; nothing is listed here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.model import Architecture

HAS = "KT_HAS_"


@dataclass(frozen=True, slots=True)
class CudaChip:
    """One CUDA chip.

    name             of the table's architecture: "sm121"
    target           what NVRTC compiles for: "sm_120f"
    shared_bytes     what one block may use
    macros           what the sources see: KT_SM (the target's number), KT_SHARED_KIB, and 1 for KT_HAS_ each feature
                     and KT_FAMILY_ each family; what a chip lacks is not defined, which #if reads as 0
    multiprocessors  of the device: measured, not a fact of the architecture
    """

    name: str
    target: str
    shared_bytes: int
    macros: tuple[tuple[str, int], ...]
    multiprocessors: int

    @property
    def features(self) -> frozenset[str]:
        """Those of the table's architecture."""
        return frozenset(name.removeprefix(HAS).lower() for name, _ in self.macros if name.startswith(HAS))

    @property
    def overlaps(self) -> bool:
        """Whether a launch can start while the one before it runs; see csrc/include/overlap.cuh."""
        return "grid_control" in self.features

    def __hash__(self) -> int:
        return hash((self.name, self.multiprocessors))


def cuda_chip(architecture: Architecture, multiprocessors: int) -> CudaChip:
    """The chip of a row of the table.

    errors   KernelUnavailable when the row states no `target` or no `shared_memory_kib`
    """
    target, shared = architecture.target, architecture.shared_memory_kib
    if target is None or shared is None:
        missing = "target" if target is None else "shared_memory_kib"
        raise KernelUnavailable(
            f"{architecture.mark.file}:{architecture.mark.line}: architecture '{architecture.name}': device code needs "
            f"`{missing}`; found none; add it, or leave the chip to kernels of other libraries"
        )
    macros = {"KT_SM": int(target.strip("sm_af")), "KT_SHARED_KIB": shared}
    macros |= {f"{HAS}{name.upper()}": 1 for name in architecture.features}
    macros |= {f"KT_FAMILY_{name.upper()}": 1 for name in architecture.families}
    return CudaChip(architecture.name, target, shared * 1024, tuple(sorted(macros.items())), multiprocessors)


def needed(chip: CudaChip | None, kernel: str, device: torch.device) -> CudaChip:
    """The chip that a kernel was given.

    chip     None: the table describes no CUDA chip that the layer lies on
    errors   KernelUnavailable without one
    """
    if device.type != "cuda":
        raise KernelUnavailable(f"{kernel}: needs a CUDA device; the weight is on {device}")
    if chip is None:
        raise KernelUnavailable(f"{kernel}: the table does not describe the chip of {device}; add an architecture")
    return chip
