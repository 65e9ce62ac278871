"""Copies of the Hopper kernels are started by a thread that the compiler knows to be alone, as the machine code tells.

Of another one it does not know that, and puts a loop over the threads of the warp around each copy: block FP8 at 128 to
256 rows takes up to 8 % longer.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kerneltable.ops import hopper_fp8_block as fp8
from kerneltable.ops import hopper_fp8_choice, hopper_fp8_rowwise, hopper_w8a16_variants, nvrtc
from kerneltable.ops import hopper_fp8_once as once
from kerneltable.ops import hopper_fp8_rowwise_once as rowwise_once
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.cuda_code import Instance, compiled
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, RESCALED
from kerneltable.ops.hopper_fp8_choice import INPUT, NOTHING, WEIGHT, Parted, Stream, tiled
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.ops.hopper_w8a16_variants import Wide
from kerneltable.ops.settings import CompileSettings
from kerneltable.table import load_table

triton = pytest.importorskip("triton")
NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
CHIP = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], 132)
COPY, LOOP, NEAR = re.compile(r"\b(UTMALDG|UTMASTG|UBLKCP)\b"), "BRA.U.ANY", 5
"""A copy to or from shared memory; the branch back of a loop over threads; how few instructions behind the copy."""

pytestmark = [
    pytest.mark.skipif(isinstance(nvrtc.find_nvrtc(), str), reason="needs NVRTC"),
    pytest.mark.skipif(not NVDISASM.is_file(), reason="this Triton has no nvdisasm"),
]


def instances() -> list[Instance]:
    tiles = [tiled(columns, common) for columns in hopper_fp8_choice.TILES for common in (WEIGHT, INPUT, NOTHING)]
    tiles.append(tiled(256, WEIGHT, apart=True))
    parts = [Parted(64, 8, 4), Parted(160, 5, 2)]
    few = [Stream(8, 8, 4), Stream(64, 4, 2)]
    widened = [Variant(1, 8, 4, 8, 5), Variant(2, 16, 5, 4, 2), Variant(2, 128, 4, 1), Wide(1), Wide(2, divide=True)]
    return [
        *(fp8.instance_of(choice, "bf16", "bf16") for choice in (*tiles, *parts, *few)),
        *(hopper_fp8_rowwise.instance_of(choice, "bf16", "bf16") for choice in (*tiles, *parts, *few)),
        *(one.instance_of(choice, "bf16", "bf16") for one in (once, rowwise_once) for choice in few),
        *(
            hopper_w8a16_variants.instance_of(choice, scales, "bf16", "bf16")
            for choice in widened
            for scales in (BY_ROW, RESCALED if isinstance(choice, Wide) else BY_BLOCK, BY_32)
        ),
    ]


def copies_and_loops(code: str) -> tuple[int, int]:
    lines = [line for line in code.splitlines() if line.rstrip().endswith(";")]
    copies = [i for i, line in enumerate(lines) if COPY.search(line)]
    return len(copies), sum(any(LOOP in line for line in lines[i : i + NEAR + 1]) for i in copies)


def test_a_loop_around_a_copy_is_seen() -> None:
    looped = "UTMALDG.2D [UR8], [UR4] ;\nPLOP3.LUT P2 ;\n@P0 BRA.U.ANY `(.L_x_3) ;\n"
    assert copies_and_loops(looped) == (1, 1)
    assert copies_and_loops(looped.replace("BRA.U.ANY", "BRA")) == (1, 0)
    assert copies_and_loops("UBLKCP [UR8], [UR4], UR3 ;\n" + "NOP ;\n" * NEAR + looped) == (2, 1)


@pytest.mark.parametrize("instance", instances(), ids=lambda one: f"{one.name} {dict(one.defines)}")
def test_no_loop_over_threads_stands_around_a_copy(instance: Instance, tmp_path: Path) -> None:
    cubin = tmp_path / "a.cubin"
    cubin.write_bytes(compiled(instance, CHIP, CompileSettings(folder=tmp_path / "cubins")).content)
    code = subprocess.run([str(NVDISASM), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    copies, loops = copies_and_loops(code)
    assert copies >= 3
    assert loops == 0
