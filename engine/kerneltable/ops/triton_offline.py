"""Compile the Triton kernels for chips that need not be here, by the launches that the ops themselves make.

Run as a program: prints one JSON object a compiled kernel. It replaces Triton's driver and turns every launch into a
compilation, so it needs a process of its own; tensors are on the meta device.

    python -m kerneltable.ops.triton_offline KERNEL '[{...}]'     (the fields of Target, as JSON)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kerneltable.ops import triton_fp8_block, triton_fp8_rowwise, triton_mxfp8, triton_quantize, triton_w8a16
from kerneltable.ops.triton_chip import Chip, abilities

Size = tuple[int, int, int, torch.dtype]
KERNELS = ("triton_fp8_block", "triton_fp8_rowwise", "triton_w8a16", "triton_mxfp8_w8a16")
"""The kernels that `launch` knows, by their ids in the table."""

CODES, BYTES, FLOATS = torch.float8_e4m3fn, torch.uint8, torch.float32


class OfflineDriver:
    """What Triton asks of a driver to compile for a target. Each target has a number: Triton caches by device."""

    def __init__(self, target: GPUTarget, number: int) -> None:
        self._target = target
        self._number = number

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture as the caller read it from the table."""

    name: str
    capability: list[int] | None
    shared_memory_kib: int | None
    features: list[str]

    def triton(self) -> GPUTarget:
        """The target as Triton names it."""
        if self.capability is not None:
            return GPUTarget("cuda", self.capability[0] * 10 + self.capability[1], 32)
        return GPUTarget("hip", self.name, 64 if self.name.startswith("gfx9") else 32)

    def chip(self) -> Chip:
        """What the ops would find out about the device."""
        return Chip(132, self.shared_memory_kib or 64, **abilities(self.features), interpreted=False)


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launch(kernel: str, m: int, dtype: torch.dtype, chip: Chip, n: int, k: int) -> None:
    """Make every launch of one call of the kernel with m rows; block and channel scales where it takes both."""
    x, bias = meta(m, k, dtype=dtype), meta(n, dtype=dtype)
    blocks = -(-k // 128)
    if kernel == "triton_fp8_block":
        codes, scales = triton_quantize.quantize_block(x, chip)
        weight, scale = meta(n, k, dtype=CODES), meta(-(-n // 128), blocks, dtype=FLOATS)
        triton_fp8_block.product(codes, scales, weight, scale, bias, dtype, chip)
    elif kernel == "triton_fp8_rowwise":
        weight, scale = meta(n, k, dtype=CODES), meta(n, dtype=FLOATS)
        codes, scales = triton_quantize.quantize_token(x, meta(1, dtype=FLOATS), chip)
        triton_fp8_rowwise.product(codes, scales, weight, scale, bias, dtype, chip)
        triton_quantize.quantize_tensor(x, None, chip)
        triton_quantize.quantize_static(x, meta(1, dtype=FLOATS), chip)
    elif kernel == "triton_w8a16":
        weight = meta(n, k, dtype=BYTES)
        triton_w8a16.product(x, weight, meta(n, dtype=FLOATS), bias, dtype, chip, nan_codes=False)
        scale = meta(-(-n // 128), blocks, dtype=FLOATS)
        triton_w8a16.product(x, weight, scale, None, dtype, chip, nan_codes=True)
    else:
        weight, scale = meta(n, k, dtype=BYTES), meta(n, k // 32, dtype=BYTES)
        triton_mxfp8.product(x, weight, scale, bias, dtype, chip, nan_codes=False, fold=True)
        triton_mxfp8.product(x, weight, scale, None, dtype, chip, nan_codes=True)


def registers(compiled: object) -> dict[str, int]:
    """Registers and spill bytes from the machine code, where Triton brings cuobjdump; {} elsewhere."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    asm = compiled.asm  # type: ignore[attr-defined]
    if "amdgcn" in asm:
        used = re.search(r"\.vgpr_count:\s+(\d+)", asm["amdgcn"])
        spilled = re.search(r"vgpr_spill_count:\s+(\d+)", asm["amdgcn"])
        return {"registers": int(used[1]), "spilled": int(spilled[1])} if used and spilled else {}
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        said = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout + said.stderr)
    return {"registers": int(found[1]), "spilled": int(found[2])} if found else {}


def compile_launches(kernel: str, number: int, target: Target, sizes: list[Size]) -> None:
    """Compile what the kernel launches for these sizes and print a line for each; number is the target's own."""
    driver.set_active(OfflineDriver(target.triton(), number))
    for m, n, k, dtype in sizes:
        compiled: list[object] = []
        JITFunction.run = recording(compiled)
        row = {"kernel": kernel, "architecture": target.name, "m": m, "n": n, "k": k, "input": str(dtype)}
        try:
            launch(kernel, m, dtype, target.chip(), n, k)
        except Exception as error:
            if "is not defined for option 'gpu-name'" not in str(error):
                raise
            print(json.dumps({**row, "unknown_to_triton": True}), flush=True)
            return
        for each in compiled:
            name, shared = each.metadata.name, each.metadata.shared  # type: ignore[attr-defined]
            print(json.dumps({**row, "function": name, "shared": shared, **registers(each)}), flush=True)


ORIGINAL = JITFunction.run


def recording(into: list[object]) -> Any:
    """A stand-in for JITFunction.run that compiles and keeps the result instead of launching it."""

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = ORIGINAL(self, *arguments, grid=grid, warmup=True, **options)
        into.append(compiled)
        return compiled

    return run


def sizes_for(name: str) -> list[Size]:
    """Every band on SM90, fewer elsewhere: a compilation takes a quarter of a second and more."""
    few = [(64, 4096, 7168, torch.bfloat16)]
    if name in ("sm80", "sm120"):
        return [*few, (4096, 4096, 7168, torch.float16)]
    if name != "sm90":
        return few
    return [*few, *((m, 4096, 7168, torch.bfloat16) for m in (1, 4096)), (64, 577, 1120, torch.float32)]


def main(kernel: str, targets: list[Target]) -> None:
    """Compile one kernel for every target."""
    for number, target in enumerate(targets):
        compile_launches(kernel, number, target, sizes_for(target.name))


if __name__ == "__main__":
    main(sys.argv[1], [Target(**each) for each in json.loads(sys.argv[2])])
