"""Stages of the Hopper FP8 products are given back only when the scales read from them have arrived in registers.

To read from a stage and then arrive at its barrier is not enough (docs/bench-h200.md, "Wrong outputs of crowded
launches"): so the address of the arrival is made of what was read. Here that is followed through the PTX.
"""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from kerneltable.ops import hopper_fp8_block as block
from kerneltable.ops import hopper_fp8_fused as fused
from kerneltable.ops import hopper_fp8_once as once
from kerneltable.ops import nvrtc
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.cuda_code import Instance
from kerneltable.ops.hopper_fp8_choice import Parted, Stream, Tiled, variant
from kerneltable.ops.sources import source
from kerneltable.table import load_table

CHIP = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], 132)
REGISTER = re.compile(r"%[a-z]+\d+")
SCALES = re.compile(r"ld\.shared(?:\.v2)?\.(?:f32|b32)\s+(\{[^}]*\}|%\w+),\s*\[([^\]]*)\]")
ARRIVAL = re.compile(r"mbarrier\.arrive\.shared::(?:cta|cluster)\.b64\s+_,\s*\[([^\]]*)\]")

pytestmark = pytest.mark.skipif(isinstance(nvrtc.find_nvrtc(), str), reason="needs NVRTC")


def ptx_of(instance: Instance) -> str:
    library, code = nvrtc.find_nvrtc(), source(instance.file)
    status, program = library.nvrtcCreateProgram(code.path.read_bytes(), code.path.name.encode(), 0, [], [])
    assert not int(status)
    macros = {**dict(CHIP.macros), **dict(instance.defines)}
    options = [*nvrtc.FLAGS, "--gpu-architecture=compute_90a", *(f"-D{name}={value}" for name, value in macros.items())]
    options += [f"--include-path={folder}" for folder in nvrtc.include_folders(code)]
    try:
        (status,) = library.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        assert not int(status)
        size = library.nvrtcGetPTXSize(program)[1]
        text = bytes(size)  # NVRTC writes into these bytes
        library.nvrtcGetPTX(program, text)
    finally:
        library.nvrtcDestroyProgram(program)
    return text.decode().rstrip("\0")


def awaited(ptx: str) -> tuple[set[str], list[set[str]]]:
    """Where scales are read (register and offset of each read), and which reads each arrival waits for, if any."""
    made_of: dict[str, set[str]] = defaultdict(set)
    read_to: dict[str, str] = {}
    arrivals: list[str] = []
    for line in re.split(r"[;\n]", ptx):
        if arrival := ARRIVAL.search(line):
            arrivals += REGISTER.findall(arrival[1])
        elif read := SCALES.search(line):
            for register in REGISTER.findall(read[1]):
                read_to[register] = f"{REGISTER.findall(read[1])[0]}[{read[2]}]"
        elif registers := REGISTER.findall(line):
            made_of[registers[0]].update(registers[1:])

    def reads_behind(register: str) -> set[str]:
        seen, left = set[str](), [register]
        while left:
            if (one := left.pop()) not in seen:
                seen.add(one)
                left += made_of[one] if one not in read_to else []
        return {read_to[one] for one in seen & read_to.keys()}

    return set(read_to.values()), [reads for reads in map(reads_behind, arrivals) if reads]


def streams() -> list[Instance]:
    found = [variant(m, 10240, 5120, 132) for m in (8, 16, 32, 64)]
    assert all(isinstance(one, Stream) for one in found)
    return [block.instance_of(one, "bf16", "bf16") for one in found]


@pytest.mark.parametrize("instance", streams(), ids=lambda one: f"columns {dict(one.defines)['KT_COLUMNS']}")
def test_few_rows_wait_for_the_scales_of_all_columns(instance: Instance) -> None:
    reads, waiting = awaited(ptx_of(instance))
    columns = dict(instance.defines)["KT_COLUMNS"]
    assert {len(each) for each in waiting} == {columns // 8}
    assert set().union(*waiting) == reads


def test_one_launch_and_the_fused_one_wait_as_well() -> None:
    some, one = variant(64, 10240, 5120, 132), variant(1, 10240, 5120, 132)
    assert isinstance(some, Stream)
    assert isinstance(one, Stream)
    for instance, each in ((once.instance_of(some, "bf16", "bf16"), 8), (fused.instance_of(one, "bf16", "bf16"), 1)):
        _, waiting = awaited(ptx_of(instance))
        assert {len(reads) for reads in waiting} == {each}


@pytest.mark.parametrize(
    ("choice", "each"),
    [
        (Parted(columns=80, stages=8, split=4), 4),
        (Tiled(columns=128, common=2, stages=6, group=8), 3),
        (Tiled(columns=192, common=0, stages=5, group=8), 4),
        (Tiled(columns=256, common=0, stages=4, group=8, chunks=2), 1),
    ],
    ids=str,
)
def test_many_rows_wait_for_the_scales_of_rows_and_columns(choice: Parted | Tiled, each: int) -> None:
    reads, waiting = awaited(ptx_of(block.instance_of(choice, "bf16", "bf16")))
    assert {len(one) for one in waiting} == {each}
    # Of two halves the second one's scale, 16 bytes on: the other scales are used before the first half is overwritten.
    asked = {read for read in reads if read.endswith("+16]")} if each == 1 else reads
    assert len(asked) == (len(reads) // 4 if each == 1 else len(reads))
    assert set().union(*waiting) == asked
