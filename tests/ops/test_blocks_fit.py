"""Blocks that a choice wants on a multiprocessor at a time find registers there, which the compiled code tells.

One register more in a thread can halve the speed: with 74 instead of 72 four blocks of five warps fit and not five, and
clusters that were to run at once ran one after the other (4096 x 7168, W8A16, one row: 11.7 instead of 8.5 us).
"""

from __future__ import annotations

import struct

import pytest

from kerneltable.ops import hopper_fp8_block as fp8
from kerneltable.ops import hopper_fp8_choice, hopper_w8a16_variants, nvrtc
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.cuda_code import Instance, compiled
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, RESCALED
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.ops.settings import CompileSettings
from kerneltable.table import load_table

CHIP = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], 132)
REGISTERS, UNIT, WARPS = 65536, 256, 4
"""Of a multiprocessor of SM90; what a warp takes is a multiple of UNIT; its parts have as many warps of a kind each."""

REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11

SIZES = [
    *((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048), (10240, 5120)),
    *((5120, 25600), (8192, 8192), (8192, 28672), (4096, 4096), (12288, 4096), (6144, 4096), (16384, 1024)),
]
ROWS = (1, 16, 32, 64)

pytestmark = pytest.mark.skipif(isinstance(nvrtc.find_nvrtc(), str), reason="needs NVRTC")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> CompileSettings:
    return CompileSettings(folder=tmp_path_factory.mktemp("cubins"))


def told(cubin: bytes, kind: int) -> int:
    """Of a thread of the only function: an attribute of section .nv.info is its form, number, size and content."""
    (sections,), (count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HH", cubin, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, sections + 64 * i) for i in range(count)]
    start = headers[names][4]
    (info,) = (one for one in headers if cubin[start + one[0] :].startswith(b".nv.info\0"))
    content = cubin[info[4] : info[4] + info[5]]
    found, at = [], 0
    while at < len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, at)
        if (form, attribute) == (4, kind):
            found.append(struct.unpack_from("<II", content, at + 4)[1])
        at += 4 + (size if form == 4 else 0)  # of other forms the size is the content
    (number,) = found
    return number


def blocks_that_fit(registers: int, threads: int) -> int:
    a_warp = -(-registers * 32 // UNIT) * UNIT
    return REGISTERS // WARPS // a_warp * WARPS // (threads // 32)


def test_warps_are_dealt_out_to_the_four_parts_of_a_multiprocessor() -> None:
    assert [blocks_that_fit(registers, 160) for registers in (56, 72, 74, 80, 96, 128)] == [7, 5, 4, 4, 4, 3]
    assert [blocks_that_fit(registers, 416) for registers in (72, 80)] == [2, 1]


def w8a16_cases() -> dict[Instance, tuple[int, int]]:
    """An instance -> blocks of it that are to share a multiprocessor, at most, and threads of a block."""
    found: dict[Instance, tuple[int, int]] = {}
    for scales in (BY_ROW, BY_BLOCK, RESCALED, BY_32):
        for n, k in SIZES:
            for m in ROWS:
                one = hopper_w8a16_variants.variant(m, n, k, scales, 132)
                assert isinstance(one, Variant)
                if one.split > 1:  # clusters that do not find room at once run one after the other
                    instance = hopper_w8a16_variants.instance_of(one, scales, "bf16", "bf16")
                    most, _ = found.get(instance, (0, 0))
                    found[instance] = (max(most, one.together), 128 * one.groups + 32)
    return found


def fp8_cases() -> dict[Instance, tuple[int, int]]:
    found: dict[Instance, tuple[int, int]] = {}
    for n, k in SIZES:
        for m in (*ROWS, 8):
            one = hopper_fp8_choice.variant(m, n, k, 132)
            assert isinstance(one, hopper_fp8_choice.Stream)
            if one.split > 1:
                instance = fp8.instance_of(one, "bf16", "bf16")
                most, _ = found.get(instance, (0, 0))
                found[instance] = (max(most, one.together), 160)
    return found


@pytest.mark.parametrize("cases", [w8a16_cases, fp8_cases])
def test_all_blocks_of_a_multiprocessor_have_registers(cases, settings: CompileSettings) -> None:
    wrong = []
    asked = cases()
    assert len(asked) > 10
    for instance, (together, threads) in asked.items():
        registers = told(compiled(instance, CHIP, settings).content, REGISTER_COUNT)
        assert 32 <= registers <= 255
        if blocks_that_fit(registers, threads) < together:
            wrong.append(f"{instance.defines}: {together} blocks of {threads} threads with {registers} registers")
    assert not wrong, "\n".join(wrong)


def test_large_blocks_keep_nothing_in_local_memory(settings: CompileSettings) -> None:
    asked = {
        hopper_w8a16_variants.instance_of(one, scales, "bf16", "bf16")
        for scales in (BY_ROW, BY_BLOCK, BY_32)
        for n, k in ((5120, 25600), (7168, 16384), (28672, 8192), (8192, 28672))
        for m in ROWS
        if isinstance(one := hopper_w8a16_variants.variant(m, n, k, scales, 132), Variant) and one.groups > 1
    }
    assert {dict(one.defines)["KT_GROUPS"] for one in asked} == {2, 3, 4}
    assert not [one.defines for one in asked if told(compiled(one, CHIP, settings).content, FRAME_SIZE)]
    crowded = hopper_w8a16_variants.instance_of(Variant(4, 64, 4, 1, 1), BY_BLOCK, "bf16", "bf16")
    assert told(compiled(crowded, CHIP, settings).content, FRAME_SIZE) > 0  # so it is never chosen
