"""FP8 weights with 16-bit inputs on Hopper: what is chosen for how many rows, and what its launch asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kerneltable.ops import hopper, hopper_w8a16
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.cuda_code import Instance, Product
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, RESCALED
from kerneltable.ops.hopper import FITTING
from kerneltable.ops.hopper_w8a16_few import SPLITS, STAGES, Variant, clusters
from kerneltable.ops.hopper_w8a16_variants import Wide, instance_of, instances, rows_of_each, variant
from kerneltable.table import load_table

CHIP = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], 132)
A_MULTIPROCESSOR, SYSTEM = 228 * 1024, 1024
"""Shared memory of a multiprocessor, and what the system takes of it for each block. CUDA C programming guide, 9.0."""

SHAPES = [(16, 16), (2112, 7168), (4096, 7168), (7168, 2048), (24576, 1536), (32768, 512), (8192, 28672), (576, 7168)]
ROWS = [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 1024, 1025, 8192]
SCALES = [BY_ROW, BY_BLOCK, RESCALED, BY_32]


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
    """Bytes of shared memory beside what a launch asks for: two barriers a stage, and one more where few rows are."""
    return 16 * choice.stages + 8 if isinstance(choice, Variant) else 16 * 5


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", ROWS)
def test_a_launch_covers_the_product_and_every_part_of_k_has_work(m, n, k, asked):
    for scales in SCALES:
        choice = variant(m, n, k, scales, 132)
        launch = hopper_w8a16.prepare(m, n, k, scales, ("bf16", "bf16"), CHIP, 0)
        across, up, _ = launch.grid
        if isinstance(choice, Wide):
            tiles, workers = -(-n // (128 * choice.inputs)) * -(-m // 256), 132 // choice.inputs
            assert across // choice.inputs == (workers if choice.divide else min(tiles, workers))
            assert (launch.divided > 0, launch.part_bytes > 0) == (choice.divide, choice.divide)
            assert (tiles - launch.divided) % workers == 0 or not choice.divide
            assert not choice.divide or launch.divided * -(-k // 128) >= workers
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


@pytest.mark.parametrize(
    ("size", "scales", "groups"),
    [
        ((1, 5120, 25600), BY_ROW, 3),
        ((64, 5120, 25600), BY_ROW, 3),
        ((1, 7168, 16384), BY_ROW, 2),
        ((64, 7168, 16384), BY_ROW, 3),
        ((1, 28672, 4096), BY_ROW, 4),
        ((64, 28672, 8192), BY_ROW, 4),
        ((64, 28672, 8192), BY_BLOCK, 1),
        ((8, 6144, 16384), BY_BLOCK, 3),
        ((1, 18432, 7168), BY_BLOCK, 1),
        ((16, 18432, 7168), BY_BLOCK, 3),
        ((32, 14336, 14336), BY_32, 4),
        ((64, 14336, 14336), RESCALED, 2),
        ((16, 8192, 28672), BY_ROW, 1),
        ((64, 8192, 28672), BY_ROW, 2),
        ((16, 10240, 5120), BY_ROW, 1),
        ((16, 5120, 25600), BY_BLOCK, 3),
        ((16, 5120, 25600), RESCALED, 3),
        ((1, 7168, 16384), BY_BLOCK, 2),
        ((64, 5120, 25600), BY_BLOCK, 3),
        ((16, 8192, 8192), BY_32, 1),
        ((16, 10240, 5120), BY_32, 1),
        ((32, 8192, 8192), BY_32, 2),
        ((16, 4096, 7168), BY_32, 1),
    ],
)
def test_few_rows_and_a_long_k_take_large_blocks_where_they_were_faster(size, scales, groups):
    found = variant(*size, scales, 132)
    assert found.groups == groups
    assert found.together <= 2 or groups == 1
    share = -(-size[1] // (64 * groups)) * found.split / (132 * found.together)
    assert groups == 1 or 0.72 <= share <= FITTING[found.split]


@pytest.mark.parametrize("scales", SCALES)
def test_large_blocks_fit_a_multiprocessor_whatever_a_scale_covers(scales):
    large = {
        found
        for m in (1, 16, 32, 64)
        for n in range(64, 32769, 64)
        for k in (5120, 16384, 28672)
        if (found := variant(m, n, k, scales, 132)).groups > 1
    }
    assert {found.groups for found in large} == {2, 3, 4}
    for found in large:
        assert found.stages >= 4
        assert instance_of(found, scales, "bf16", "f32").shared_bytes + barriers_of(found) <= CHIP.shared_bytes


@pytest.mark.parametrize(
    ("size", "split", "together"),
    [
        ((16, 4096, 7168), 7, 4),
        ((1, 4096, 7168), 8, 5),
        ((1, 4608, 7168), 7, 5),
        ((16, 18944, 3584), 2, 5),
        ((16, 16384, 1024), 1, 3),
        ((1, 4096, 4096), 4, 3),
        ((1, 12288, 4096), 2, 3),
        ((64, 12288, 4096), 2, 3),
        ((16, 16384, 2048), 2, 4),
        ((16, 32768, 512), 1, 5),
        ((1, 8192, 28672), 2, 2),
    ],
)
@pytest.mark.parametrize("scales", SCALES)
def test_few_rows_fill_the_chip_evenly_and_leave_room_for_the_next_launch_as_was_fastest(size, split, together, scales):
    found = variant(*size, scales, 132)
    assert (found.groups, found.split, found.together) == (1, split, together)


@pytest.mark.parametrize("scales", SCALES)
def test_five_blocks_to_a_multiprocessor_want_few_registers(scales):
    sizes = ((4096, 7168), (16384, 2048))
    few, more = ([variant(m, n, k, scales, 132) for n, k in sizes] for m in (1, 16))
    assert [(one.split, one.together) for one in few] == [(8, 5), (2, 5)]
    assert all(one.together < 5 for one in more)


@pytest.mark.parametrize("scales", SCALES)
def test_blocks_of_two_groups_leave_half_a_multiprocessor_to_the_next_launch_if_the_weight_is_small(scales):
    found = [variant(m, n, k, scales, 132) for n, k in ((7168, 2048), (16384, 1024)) for m in (1, 9)]
    assert [(one.groups, one.split, one.together) for one in found[::2]] == [(2, 2, 2), (2, 1, 2)]
    assert all(one.groups == 1 for one in found[1::2])
    assert variant(1, 4096, 4096, scales, 132).groups == 1  # clusters of four would not all fit at once


@pytest.mark.parametrize("scales", SCALES)
def test_a_weight_that_outgrows_the_cache_makes_room_first_where_that_pays(scales):
    sizes = ((5120, 25600), (8192, 8192))
    asked = {(m, size): variant(m, *size, scales, 132) for m in (1, 9, 16, 17) for size in sizes}
    assert {key for key, one in asked.items() if one.once} == {(m, (5120, 25600)) for m in (1, 9, 16)}


def test_clusters_of_three_leave_room_that_clusters_of_two_and_four_take():
    assert [clusters(2, split, 132) * split for split in (1, 2, 3, 4)] == [264, 264, 240, 256]
    assert [clusters(3, split, 132) * split >= 320 for split in SPLITS] == [True] * len(SPLITS)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("scales", SCALES)
def test_what_is_compiled_when_packing_is_all_that_is_launched(n, k, scales):
    known = {variant(m, n, k, scales, 132) for m in rows_of_each(n, k, scales, 132)}
    assert len(known) == len(rows_of_each(n, k, scales, 132))
    assert {variant(m, n, k, scales, 132) for m in (*range(1, 700, 3), *range(700, 9000, 101))} <= known


@pytest.mark.parametrize("scales", SCALES)
def test_parts_of_large_tiles_are_no_more_than_run_at_once(scales):
    for m, n, k in ((128, 5120, 25600), (128, 2112, 7168), (256, 2112, 7168), (128, 4096, 7168), (256, 4096, 7168)):
        found = variant(m, n, k, scales, 132)
        blocks = -(-n // (64 * found.groups)) * -(-m // found.columns) * found.split
        assert found.split > 1
        assert blocks <= FITTING[found.split] * 132


@pytest.mark.parametrize("scales", SCALES)
def test_where_a_chip_is_full_wide_tiles_take_over(scales):
    for m, n, k in [(1024, 8192, 8192), (256, 32768, 512), (1024, 24576, 1536), (1024, 4096, 7168)]:
        assert variant(m, n, k, scales, 132) == Wide(1)
    for n, k in [(2112, 7168), (7168, 2048), (4096, 7168), (8192, 8192)]:
        assert isinstance(variant(256, n, k, scales, 132), Variant)
    assert isinstance(variant(256, 24576, 1536, BY_ROW, 132), Variant)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    ("m", "n", "k", "tiles"), [(1024, 2112, 7168, 68), (256, 5120, 25600, 40), (1024, 5120, 25600, 160)]
)
def test_tiles_that_would_leave_the_chip_idle_are_divided_where_that_was_faster(m, n, k, tiles, scales, asked):
    found = variant(m, n, k, scales, 132)
    assert found.divide
    launch = hopper_w8a16.prepare(m, n, k, scales, ("bf16", "bf16"), CHIP, 0)
    assert launch.divided == tiles // found.inputs  # all
    assert launch.grid == (132, 1, 1)
    assert launch.part_bytes == 132 * 128 * 256 * 4


def test_two_blocks_share_an_input_tile_where_that_takes_less_power():
    for n, k in [(8192, 28672), (5120, 25600), (10240, 5120)]:
        found = [variant(1024, n, k, scales, 132) for scales in SCALES]
        assert {one.inputs for one, scales in zip(found, SCALES, strict=True) if scales in (BY_ROW, BY_32)} == {2}
        assert {one.inputs for one, scales in zip(found, SCALES, strict=True) if scales not in (BY_ROW, BY_32)} == {1}


def test_functions_start_early_unless_the_choice_says_no(asked):
    for choice in (Variant(1, 8, 5, 1, 4), Wide(2)):
        for early in (True, False):
            one = replace(choice, early=early)
            hopper_w8a16.prepare(1, 4096, 4096, BY_ROW, ("bf16", "bf16"), CHIP, 0, one)
            assert asked[-1].early is early


@pytest.mark.parametrize("inputs", [1, 2])
def test_in_wide_tiles_one_sum_changes_its_unit_where_scales_allow_it(inputs):
    for scales in SCALES:
        seen = dict(instance_of(Wide(inputs), scales, "bf16", "bf16").defines)
        assert seen["KT_SCALES"] == (BY_BLOCK if scales == RESCALED else scales)
        assert seen["KT_RESCALE"] == int(scales == RESCALED)
        assert seen["KT_TURNS"] == int(scales == BY_BLOCK and inputs == 1)


@pytest.mark.parametrize("choice", [Variant(2, 128, 4, 3), Variant(1, 128, 4, 1), Variant(1, 8, 5, 2)])
def test_narrower_tiles_are_the_same_for_scales_of_blocks_of_any_kind(choice):
    assert instance_of(choice, RESCALED, "bf16", "bf16") == instance_of(choice, BY_BLOCK, "bf16", "bf16")


def test_both_ways_of_adding_blocks_are_among_the_instances():
    found = [dict(one.defines) for one in instances([Product(4096, 8192, 8192, 132)], "bf16", "bf16")]
    assert sorted((one["KT_SCALES"], one["KT_RESCALE"]) for one in found) == [(0, 0), (1, 0), (1, 1), (2, 0)]


ALLOWED = {
    "ones": [1.0, 1.0],
    "zeros": [0.0, 0.0],
    "a zero and a negative zero": [0.0, -0.0, 3.0],
    "the least of bf16": [2.0**-111, 1.0],
    "the largest of bf16": [2.0**-111, 2.0**8 * (1 - 2.0**-24)],
    "as far apart as f16 allows": [2.0**-20, 0.0, 2.0**20],
    "the least of f16": [2.0**-100, 2.0**-60],
    "the largest of f16": [2.0**99, 2.0**60],
}
REFUSED = {
    "too small": [2.0**-112, 1.0],
    "subnormal": [2.0**-130, 0.0],
    "too large": [2.0**100, 2.0**100],
    "negative": [-1.0, 1.0],
    "infinite": [float("inf"), 1.0],
    "minus infinity": [float("-inf"), 1.0],
    "NaN": [float("nan"), 1.0],
    "a zero and NaN": [0.0, float("nan")],
}
ONLY_BF16 = ("the least of bf16", "the largest of bf16")
ONLY_F16 = ("as far apart as f16 allows", "the largest of f16")


@pytest.mark.parametrize("name", [*ALLOWED, *REFUSED])
def test_scales_in_whose_units_sums_stay_finite_are_told_from_others(name):
    scale = torch.tensor([(ALLOWED | REFUSED)[name]], dtype=torch.float32)
    assert hopper_w8a16.rescales(scale, "bf16") == (name in ALLOWED and name not in ONLY_F16)
    assert hopper_w8a16.rescales(scale, "f16") == (name in ALLOWED and name not in ONLY_BF16)


def test_scales_that_span_more_than_f16_allows_are_refused_for_it_alone():
    scale = torch.tensor([2.0**-20, 2.0**20 * (1 + 2.0**-23)])
    assert not hopper_w8a16.rescales(scale, "f16")
    assert hopper_w8a16.rescales(scale.mul(2.0**-13), "bf16")


def test_every_code_times_the_power_of_two_of_a_scale_is_exact_in_bf16():
    """What Spread and widening_power of widen.cuh compute, in the same bits."""
    low, high, _ = hopper_w8a16.UNITS["bf16"]
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.int32)
    spread = (codes << 8 & 0x8000) | (codes << 4 & 0x07F0)
    halves = spread.to(torch.uint16).view(torch.bfloat16)
    values = codes.to(torch.uint8).view(torch.float8_e4m3fn).double()
    for scale in (low, 1.99 * low, 2.0**-60, 0.3, 1.0, 100.0, high * (1 - 2.0**-24)):
        bits = int(torch.tensor(scale, dtype=torch.float32).view(torch.int32))
        power, unit = bits >> 23, torch.tensor((bits & 0x7FFFFF) | 0x3F800000, dtype=torch.int32).view(torch.float32)
        factor = torch.tensor((power + 120) << 7, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
        widened = (halves.double() * factor.double()).to(torch.bfloat16)
        smallest = widened.abs()[widened != 0].min()
        assert torch.equal(widened.double(), values * 2.0 ** (power - 127))
        assert float(smallest) >= torch.finfo(torch.bfloat16).smallest_normal
        assert float(unit) * 2.0 ** (power - 127) == pytest.approx(scale, rel=1e-7)
        assert 1 <= float(unit) < 2


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
