"""FP8 weights with 16-bit inputs on Hopper: what is chosen for how many rows, and what its launch asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kerneltable.ops import hopper, hopper_w8a16
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.cuda_code import Instance
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW
from kerneltable.ops.hopper_w8a16_variants import (
    SPLITS,
    STAGES,
    Variant,
    Wide,
    clusters,
    instance_of,
    rows_of_each,
    variant,
)
from kerneltable.table import load_table

CHIP = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], 132)
A_MULTIPROCESSOR, SYSTEM = 228 * 1024, 1024
"""Shared memory of a multiprocessor, and what the system takes of it for each block. CUDA C programming guide, 9.0."""

SHAPES = [(16, 16), (2112, 7168), (4096, 7168), (7168, 2048), (24576, 1536), (32768, 512), (8192, 28672), (576, 7168)]
ROWS = [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 1024, 1025, 8192]
SCALES = [BY_ROW, BY_BLOCK, BY_32]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Instance]:
    """What is loaded, in order."""
    seen: list[Instance] = []

    def load(one: Instance, chip: CudaChip, device: int) -> Any:
        seen.append(one)

    monkeypatch.setattr(hopper_w8a16, "load", load)
    hopper_w8a16.prepare.cache_clear()
    yield seen
    hopper_w8a16.prepare.cache_clear()


def barriers_of(choice: Variant | Wide) -> int:
    """Bytes of shared memory beside what a launch asks for: two barriers a stage."""
    return 16 * (choice.stages if isinstance(choice, Variant) else 5)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", ROWS)
def test_a_launch_covers_the_product_and_every_part_of_k_has_work(m, n, k, asked):
    for scales in SCALES:
        choice = variant(m, n, k, scales, 132)
        launch = hopper_w8a16.prepare(m, n, k, scales, ("bf16", "bf16"), CHIP, 0)
        across, up, _ = launch.grid
        if isinstance(choice, Wide):
            tiles = -(-n // (128 * choice.inputs)) * -(-m // 256)
            assert across // choice.inputs <= min(tiles, 132 // choice.inputs)
            assert (across % choice.inputs, up, launch.block[0]) == (0, 1, 384)
            assert launch.box == (256 // choice.inputs, 64)
        else:
            assert 1 <= choice.split <= min(8, -(-k // 128))
            assert across * 64 * choice.groups >= n * choice.split
            assert up * choice.columns >= m
            assert launch.box == (choice.columns, 64)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("columns", STAGES)
def test_stages_fill_the_share_of_a_block_and_no_more(columns, scales, asked):
    for together, stages in enumerate(STAGES[columns], 2):
        choice = Variant(1, columns, stages, 1, together)
        hopper_w8a16.prepare(columns, 4096, 4096, scales, ("bf16", "bf16"), CHIP, 0, choice)
        taken = asked[-1].shared_bytes + barriers_of(choice) + SYSTEM
        assert instance_of(choice, scales, "bf16", "bf16").shared_bytes <= asked[-1].shared_bytes
        assert together * taken <= A_MULTIPROCESSOR < (together + 1) * taken
        if scales == BY_32:
            more = instance_of(replace(choice, stages=stages + 1), scales, "bf16", "bf16").shared_bytes
            assert more > CHIP.shared_bytes // together - hopper_w8a16.BESIDE


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("choice", [Wide(1), Wide(2), Variant(2, 128, 4, 1), Variant(1, 128, 4, 3)])
def test_a_block_of_large_tiles_has_a_multiprocessor_for_itself(choice, scales):
    for output in ("bf16", "f16", "f32"):
        taken = instance_of(choice, scales, "bf16", output).shared_bytes + barriers_of(choice)
        assert A_MULTIPROCESSOR / 2 - SYSTEM < taken <= CHIP.shared_bytes


def test_clusters_of_three_leave_room_that_clusters_of_two_and_four_take():
    assert [clusters(1, split, 132) * split for split in (1, 2, 3, 4)] == [132, 132, 120, 128]
    assert [clusters(3, split, 132) * split >= 320 for split in SPLITS] == [True] * len(SPLITS)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("scales", SCALES)
def test_what_is_compiled_when_packing_is_all_that_is_launched(n, k, scales):
    known = {variant(m, n, k, scales, 132) for m in rows_of_each(n, k, scales, 132)}
    assert len(known) == len(rows_of_each(n, k, scales, 132))
    assert {variant(m, n, k, scales, 132) for m in (*range(1, 700, 3), *range(700, 9000, 101))} <= known


def test_where_a_chip_is_full_wide_tiles_take_over():
    for scales in SCALES:
        assert isinstance(variant(1024, 8192, 28672, scales, 132), Wide)
        assert isinstance(variant(256, 8192, 28672, scales, 132), Variant)
    assert isinstance(variant(256, 24576, 1536, BY_ROW, 132), Wide)
    assert isinstance(variant(256, 24576, 1536, BY_BLOCK, 132), Variant)


def test_functions_start_early_unless_the_choice_says_no(asked):
    for choice in (Variant(1, 8, 5, 1, 4), Wide(2)):
        for early in (True, False):
            one = replace(choice, early=early)
            hopper_w8a16.prepare(1, 4096, 4096, BY_ROW, ("bf16", "bf16"), CHIP, 0, one)
            assert asked[-1].early is early


def test_packing_waits_for_the_stream_of_the_weight_s_device(monkeypatch):
    waited = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    hopper.settle(torch.device("cpu"))
    hopper.settle(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
