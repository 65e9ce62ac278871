"""Launches that start while the kernel before them runs: what the driver is told, and what device code owes for it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from struct import Struct
from types import SimpleNamespace

import pytest

from kerneltable.ops import cuda_code, cuda_parts, cuda_quantize
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.cuda_code import Product
from kerneltable.ops.cuda_instances import MODULES, instances
from kerneltable.ops.cuda_launch import CONFIGURATION, EARLY, EARLY_ID, FIRST_CELL, INT32, POINTER, Function
from kerneltable.ops.sources import csrc_folder
from kerneltable.table import load_table


def configuration(early: bool, times: int = 1) -> tuple[tuple[int, ...], bytes]:
    """What the driver finds at a launch: the last configuration, and its attributes."""
    seen: list[tuple[tuple[int, ...], bytes]] = []

    def launch(at: int, handle: int, table: int, extra: None) -> int:
        fields = Struct(CONFIGURATION).unpack(ctypes.string_at(at, FIRST_CELL))
        seen.append((fields, ctypes.string_at(fields[-2], Struct(EARLY).size * fields[-1]) if fields[-1] else b""))
        cells = (ctypes.c_uint64 * 2).from_address(table)
        assert (POINTER.from_address(cells[0]).value, INT32.from_address(cells[1]).value) == (1 << 40, 5)
        return 0

    function = Function(7, launch, 0, (POINTER, INT32), 1024, lambda device: 11, early)
    for _ in range(times):
        function((3, 2, 1), (32, 1, 1), (1 << 40, 5))
    assert len(function.free) == 1
    return seen[-1]


def test_the_attribute_of_an_early_launch_is_the_driver_s_own_structure():
    driver = pytest.importorskip("cuda.bindings.driver")
    stated = driver.CUlaunchAttribute()
    stated.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    stated.value.programmaticStreamSerializationAllowed = 1
    asked = driver.CUlaunchConfig()
    asked.attrs, asked.numAttrs = [stated, stated], 2
    at = Struct(CONFIGURATION).unpack(ctypes.string_at(asked.getPtr(), FIRST_CELL))[-2]
    size = Struct(EARLY).size
    assert int(stated.id) == EARLY_ID
    assert ctypes.string_at(at, 2 * size) == 2 * Struct(EARLY).pack(EARLY_ID, 1)


@pytest.mark.parametrize("times", [1, 3])
def test_an_early_function_is_launched_with_that_attribute_every_time(times):
    fields, attributes = configuration(early=True, times=times)
    assert fields[:8] == (3, 2, 1, 32, 1, 1, 1024, 11)
    assert attributes == Struct(EARLY).pack(EARLY_ID, 1)


def test_any_other_function_is_launched_without_attributes():
    fields, attributes = configuration(early=False)
    assert (fields[-2:], attributes) == ((0, 0), b"")


def chip(name: str) -> CudaChip:
    return cuda_chip(load_table().platforms["cuda"].architectures[name], 100)


@pytest.mark.parametrize(("name", "early"), [("sm89", False), ("sm90", True), ("sm100", True), ("sm121", True)])
def test_an_instance_is_launched_early_where_the_chip_can(monkeypatch, name, early):
    asked = []
    monkeypatch.setattr(cuda_code, "compiled", lambda *_: SimpleNamespace(content=b""))
    monkeypatch.setattr(cuda_code, "load_function", lambda *_, early: asked.append(early))
    for instance in (cuda_quantize.instance_of("bf16", 8, 128, 1), cuda_parts.instance_of("bf16")):
        cuda_code.load.__wrapped__(instance, chip(name), 0)
    assert asked == [early, False]


def with_headers(path: Path) -> list[str]:
    """The text of a source and those of what it includes, but for the header of these functions themselves."""
    code = path.read_text()
    names = [name for name in re.findall(r'^#include "(.+)"', code, re.MULTILINE) if name != "overlap.cuh"]
    return [code, *(text for name in names for text in with_headers(csrc_folder() / "include" / name))]


def test_device_code_that_is_launched_early_waits_before_it_lets_the_next_one_start():
    products = [Product(m, 4096, 4096, 132) for m in (1, 64, 128, 4096)]
    found = {one for kernel in MODULES for one in instances(kernel, products, [("bf16", "bf16")])}
    early = {one.file for one in found if one.early}
    assert {"cuda/quantize_block.cu", "cuda/quantize_token.cu", "cuda/quantize_tensor.cu"} <= early
    for file in early:
        lets = [code for code in with_headers(csrc_folder() / file) if "let_next_start()" in code]
        assert lets, file
        for code in lets:
            assert 0 < code.find("wait_for_previous()") < code.find("let_next_start()"), file
