"""Which instance of the Hopper FP8 sources serves a product: what every choice keeps, whatever the sizes are."""

from __future__ import annotations

import random

import pytest
import torch

from kerneltable.ops import hopper_fp8_block as op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.hopper import FITTING, tiles_to_divide
from kerneltable.ops.hopper_fp8_choice import (
    COLUMN_COSTS,
    FEW_ROWS,
    FIXED,
    INPUT,
    MOST_STAGES,
    NOTHING,
    PART_COLUMNS,
    ROOM,
    SOME_ROWS,
    TILES,
    WEIGHT,
    Parted,
    Stream,
    Tiled,
    tiled,
    variant,
)

DICE = random.Random(5)
SIZES = [
    (int(2 ** DICE.uniform(0, 14)), 16 * int(2 ** DICE.uniform(0, 12)), 16 * int(2 ** DICE.uniform(0, 11)), units)
    for units in (14, 78, 114, 132)
    for _ in range(500)
]


def test_every_block_of_a_cluster_has_a_part_of_k() -> None:
    streams = [(size, found) for size in SIZES if isinstance(found := variant(*size), Stream)]
    assert len(streams) > 500
    for (_, _, k, _), found in streams:
        assert 1 <= found.split <= min(8, -(-k // 128))


def test_a_streaming_block_fits_a_multiprocessor_and_covers_the_rows() -> None:
    for m, n, k, units in SIZES:
        found = variant(m, n, k, units)
        if isinstance(found, Stream):
            assert 2 <= found.stages <= MOST_STAGES
            assert found.shared_bytes + 1024 <= ROOM
            assert found.columns >= m


@pytest.mark.parametrize(
    ("size", "split", "together"),
    [
        ((1, 2112, 7168), 8, 3),
        ((64, 2112, 7168), 8, 3),
        ((16, 4096, 4096), 4, 3),
        ((16, 7168, 2048), 2, 3),
        ((8, 32768, 512), 1, 5),
        ((8, 4096, 7168), 7, 4),
        ((1, 8192, 28672), 2, 2),
    ],
)
def test_small_weights_leave_room_for_the_next_launch(size: tuple[int, int, int], split: int, together: int) -> None:
    found = variant(*size, 132)
    assert isinstance(found, Stream)
    assert (found.split, found.together) == (split, together)


def test_as_many_streaming_blocks_as_meant_share_a_multiprocessor() -> None:
    for size in SIZES:
        found = variant(*size)
        if isinstance(found, Stream) and found.together:
            each = found.shared_bytes + 16 * found.stages + 1024  # barriers, and what the system takes
            assert found.together * each <= 228 * 1024 < (found.together + 1) * each


def test_many_rows_are_never_streamed_and_few_always() -> None:
    for m, n, k, units in SIZES:
        found = variant(m, n, k, units)
        assert isinstance(found, Stream) == (m <= FEW_ROWS)
        assert isinstance(found, Tiled) or m <= SOME_ROWS


def test_clusters_of_parts_fill_the_chip_once_and_their_sums_fit_the_stages() -> None:
    asked = [(size, found) for size in SIZES if isinstance(found := variant(*size), Parted)]
    assert len(asked) > 50
    for (m, n, k, units), found in asked:
        assert -(-m // 128) * -(-n // found.columns) * found.split <= FITTING[found.split] * units
        assert -(-k // 128) // found.split >= 4
        assert found.shared_bytes + 1024 <= ROOM
        assert 128 * (-(-found.columns // 32) * 32 + 8) * 4 <= found.stages * (128 + found.columns) * 128
        assert found.columns > 128 or found.stages % 2 == 0  # else loops would be unrolled over twice as many


@pytest.mark.parametrize("columns", PART_COLUMNS)
def test_no_tile_of_parts_has_weight_scales_of_three_blocks(columns: int) -> None:
    assert all((first + columns - 1) // 128 - first // 128 <= 1 for first in range(0, columns * 64, columns))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 8192, 28672), Parted(128, 6, 2)),
        ((128, 7168, 16384), Parted(112, 6, 2)),
        ((128, 10240, 5120), Parted(160, 6, 2)),
        ((128, 7168, 2048), tiled(64, NOTHING)),
        ((128, 32768, 512), tiled(128, NOTHING)),
        ((128, 24576, 1536), tiled(192, NOTHING)),
        ((256, 4096, 7168), Parted(128, 6, 2)),
        ((256, 5120, 25600), Parted(160, 6, 2)),
        ((256, 8192, 28672), tiled(128, WEIGHT)),
        ((256, 10240, 5120), tiled(192, WEIGHT)),
        ((8192, 2112, 7168), tiled(128, WEIGHT, divide=True)),
        ((1024, 10240, 5120), tiled(128, WEIGHT)),
        ((1024, 5120, 25600), tiled(256, WEIGHT, divide=True, apart=True)),
        ((4096, 24576, 1536), tiled(128, WEIGHT)),
        ((4096, 32768, 512), tiled(256, WEIGHT)),
        ((8192, 7168, 16384), tiled(256, WEIGHT, divide=True, apart=True)),
        ((4096, 8192, 8192), tiled(128, WEIGHT)),
    ],
)
def test_what_was_fastest_when_it_was_timed_is_chosen(size: tuple[int, int, int], expected: Parted | Tiled) -> None:
    assert variant(*size, 132) == expected


@pytest.mark.parametrize(
    ("tiles", "divided"), [(1, 1), (17, 17), (66, 0), (68, 68), (98, 98), (99, 33), (132, 0), (133, 67)]
)
def test_a_last_wave_of_few_tiles_is_divided_together_with_the_one_before(tiles: int, divided: int) -> None:
    assert tiles_to_divide(tiles, 66) == divided


def test_a_divided_tile_has_few_parts_unless_there_are_few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "load", lambda *_: None)
    asked = [(size, found) for size in SIZES if isinstance(found := variant(*size), Tiled) and found.divide]
    assert len(asked) > 50
    for (m, n, k, units), found in asked:
        pairs = units // 2
        assert found.common == WEIGHT
        tiles = -(-m // 256) * -(-n // found.columns)
        launch = op.prepare(m, n, k, "bf16", "bf16", CudaChip("sm90", "sm_90a", 232448, (), units), 0, found)
        assert launch.divided is not None
        assert 0 < launch.divided <= tiles
        assert (tiles - launch.divided) % pairs == 0
        assert tiles < pairs or pairs / launch.divided <= 2


def test_the_fixed_instance_divides_nothing() -> None:
    assert not FIXED.divide


@pytest.mark.parametrize("columns", TILES)
@pytest.mark.parametrize("common", [WEIGHT, INPUT, NOTHING])
def test_the_grid_covers_a_product_whatever_blocks_share(
    columns: int, common: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "load", lambda *_: None)
    for m, n in ((300, 400), (1, 16), (128, 32768)):
        op.prepare.cache_clear()
        chip = CudaChip("sm90", "sm_90a", 232448, (), 132)
        found = op.prepare(m, n, 1040, "bf16", "bf16", chip, 0, tiled(columns, common))
        blocks, members = found.grid[0], 1 if common == NOTHING else 2
        rows = found.codes[0] * (2 if common == INPUT else 1)
        across = found.weight[0] * (2 if common == WEIGHT else 1)
        assert (rows, across) == (128, columns)
        assert blocks % members == 0
        wanted = -(-m // (rows * (2 if common == WEIGHT else 1))) * -(-n // (across * (2 if common == INPUT else 1)))
        assert blocks == min(132, members * wanted)
    op.prepare.cache_clear()


@pytest.mark.parametrize("output", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("columns", TILES)
@pytest.mark.parametrize("common", [WEIGHT, INPUT, NOTHING])
def test_a_tile_fits_and_is_stored_in_whole_rounds(columns: int, output: str, common: int) -> None:
    found = tiled(columns, common)
    assert found.shared_bytes(output) <= ROOM
    assert columns % (64 * found.chunks) == 0
    assert columns > 128 or found.stages % 2 == 0


def test_every_width_of_tile_is_chosen_for_some_product() -> None:
    asked = [variant(m, n, k, 132) for m in (512, 1024, 4096) for n in range(1024, 16385, 1024) for k in (2048, 7168)]
    assert {one.columns for one in asked if isinstance(one, Tiled)} == set(COLUMN_COSTS)


def test_the_scales_of_a_weight_stand_together_for_threads_and_apart_for_copies() -> None:
    scale = torch.arange(1.0, 16.0).view(3, 5).t()  # not contiguous
    found = op.weight_scale_of(scale)
    assert torch.equal(found.plain, scale)
    assert torch.equal(found.apart[:, ::4], scale)
    assert found.apart.sum() == scale.sum()
    assert found.plain.is_contiguous()
    assert found.apart.is_contiguous()
    assert found.apart.stride(0) * 4 % 16 == 0
