"""The only question to the machine: which device is here, what it measures, what is installed. Each look is guarded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Platform, Table
from kerneltable.ops.cpp import COMPILERS
from kerneltable.select.devices import ASSUMED, architecture_of
from kerneltable.select.environments import all_needs
from kerneltable.select.versions import distribution

Answer = TypeVar("Answer")

CPU_FLAGS = {  # flags that Linux names in /proc/cpuinfo, all needed -> feature of the table
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "amx_bf16": frozenset({"amx_tile", "amx_bf16"}),
    "neon": frozenset({"asimd"}),
}


def current_device(table: Table | None = None, index: int | None = None, *, platform: str | None = None) -> Device:
    """The device of this process: a CUDA or ROCm GPU if torch sees one, else an XPU, else the CPU.

    table     None reads the shipped table; it names the architecture that the chip is (None: it knows no such chip)
    index     the torch device index; None is torch's current device
    platform  "cpu" asks about the processor, also where there is a GPU
    returns   a Device with measured facts; what cannot be found out stays unknown, and nothing is raised for it
    errors    ProblemError when torch sees no GPU or XPU of this index
    """
    if table is None:
        from kerneltable.table import load_table

        table = load_table()
    torch = _guarded(_torch, None)
    facts: dict[str, Any] | None = None
    for look in () if platform == "cpu" else (_gpu, _xpu):
        if facts is None and torch is not None:
            facts = _guarded(lambda look=look: look(torch, table, index), None)  # type: ignore[misc]
    if facts is None and index is not None and platform != "cpu":
        raise ProblemError(
            f"device {index}: wanted a GPU that torch sees; found {_guarded(lambda: _count(torch), 0)} here; leave the "
            "index out for the present device"
        )
    if facts is None:
        facts = _cpu(table)
    return Device(**facts, packages=_packages(table), ops=_ops(table, torch))


def architecture_at(index: int, table: Table) -> str | None:
    """The table's architecture of a GPU or XPU of torch, without a look at what is installed; None: not known."""
    torch = _guarded(_torch, None)
    facts = _guarded(lambda: _gpu(torch, table, index) or _xpu(torch, table, index), None)
    return None if facts is None else facts["architecture"]


def _torch() -> Any:
    import torch

    return torch


def _count(torch: Any) -> int:
    """How many GPUs torch sees, of whichever kind there are."""
    return max(int(torch.cuda.device_count()), int(torch.xpu.device_count()))


def _guarded(look: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The answer of a look at the machine; drivers and libraries fail in every way, and then it stays unknown."""
    try:
        return look()
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # what a broken driver or library raises has no common class
        return otherwise


def _gpu(torch: Any, table: Table, index: int | None) -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if index is None else index
    seen = torch.cuda.get_device_properties(index)
    rocm = bool(torch.version.hip)
    platform = table.platforms.get("rocm" if rocm else "cuda")
    capability = None if rocm else tuple(torch.cuda.get_device_capability(index))
    target = str(getattr(seen, "gcnArchName", "")).split(":")[0]
    return {
        "platform": "rocm" if rocm else "cuda",
        "architecture": _named(platform, target) if rocm else _by_capability(platform, capability),
        "name": _guarded(lambda: str(seen.name), ""),
        "capability": capability,
        "sm_count": _guarded(lambda: int(seen.multi_processor_count), None),
        "shared_memory_kib": _guarded(lambda: int(seen.shared_memory_per_block_optin) // 1024, None),
        "memory_gib": _guarded(lambda: round(seen.total_memory / 2**30, 1), None),
        "index": index,
    }


def _xpu(torch: Any, table: Table, index: int | None) -> dict[str, Any] | None:
    if not torch.xpu.is_available():
        return None
    index = torch.xpu.current_device() if index is None else index
    seen = torch.xpu.get_device_properties(index)
    name = str(seen.name)
    return {
        "platform": "xpu",
        "architecture": _by_words(table.platforms.get("xpu"), name),
        "name": name,
        "memory_gib": _guarded(lambda: round(seen.total_memory / 2**30, 1), None),
        "index": index,
    }


def _cpu(table: Table) -> dict[str, Any]:
    text = _guarded(lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), "")
    flags, name = read_cpuinfo(text)
    features = {feature for feature, needed in CPU_FLAGS.items() if needed <= flags}
    if not text and _guarded(_machine, "") in ("arm64", "aarch64"):
        features = {"neon"}
    return {"platform": "cpu", "architecture": _by_features(table.platforms.get("cpu"), features), "name": name}


def _machine() -> str:
    import platform

    return platform.machine().lower()


def read_cpuinfo(text: str) -> tuple[frozenset[str], str]:
    """Flags and model name of the first processor in the text of /proc/cpuinfo (x86: flags, Arm: Features)."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(flags[1].split() if flags else ()), model[1].strip() if model else "cpu"


def _named(platform: Platform | None, name: str) -> str | None:
    return name if platform is not None and name in platform.architectures else None


def _by_capability(platform: Platform | None, capability: Any) -> str | None:
    return architecture_of(platform, capability) if platform is not None else None


def _by_words(platform: Platform | None, name: str) -> str | None:
    """The architecture of the table's device name whose words all stand in the name that a driver reports."""
    if platform is None:
        return None
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = {chip for known, chip in platform.devices.items() if set(known.lower().split("-")) <= words}
    return found.pop() if len(found) == 1 else None


def _by_features(platform: Platform | None, features: Iterable[str]) -> str | None:
    """The architecture with the most features of which the machine has every one."""
    here = frozenset(features)
    chips = platform.architectures.values() if platform is not None else ()
    fitting = [chip for chip in chips if chip.features and chip.features <= here]
    return max(fitting, key=lambda chip: len(chip.features)).name if fitting else None


def _packages(table: Table) -> dict[str, str | None]:
    """Version of each package that the table asks about, and of torch, triton and kerneltable, where installed."""
    from importlib.metadata import version

    found: dict[str, str | None] = {"kerneltable": None}  # it runs, whether it is installed or not
    for name in sorted({*ASSUMED, *(need.name for need in all_needs(table, "packages"))}):
        seen = _guarded(lambda name=name: version(name), None)  # type: ignore[misc]
        if seen is not None:
            found[distribution(name)] = seen
    return found


def _ops(table: Table, torch: Any) -> frozenset[str]:
    """Which of the ops that the table asks about are registered; "tool::cxx" is a C++ compiler on the path."""
    names = {need.name for need in all_needs(table, "ops")}
    return frozenset(name for name in names if _guarded(lambda name=name: _has_op(name, torch), False))  # type: ignore[misc]


def _has_op(name: str, torch: Any) -> bool:
    space, _, op = name.partition("::")
    if space == "tool":
        return op == "cxx" and any(shutil.which(compiler) for compiler in COMPILERS)
    return torch is not None and hasattr(getattr(torch.ops, space), op)
