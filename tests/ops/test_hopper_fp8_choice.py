"""Which instance of the Hopper FP8 sources serves a product: what every choice keeps, whatever the sizes are."""

from __future__ import annotations

import random

import pytest

from kerneltable.ops.hopper_fp8_choice import (
    FIXED,
    MOST_PARTS,
    MOST_STAGES,
    ROOM,
    SOME_ROWS,
    Stream,
    Tiled,
    divided_tiles,
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
            assert found.stages * found.stage_bytes + 2048 <= ROOM
            assert found.columns >= m


def test_many_rows_are_never_streamed() -> None:
    assert all(isinstance(variant(m, n, k, units), Tiled) for m, n, k, units in SIZES if m > SOME_ROWS)


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [(17, 17), (66, 0), (68, 68), (82, 82), (83, 17), (132, 0), (134, 68), (265, 67)],
)
def test_the_last_wave_is_divided_and_a_small_one_takes_the_wave_before_along(tiles: int, expected: int) -> None:
    assert divided_tiles(tiles, 66) == expected


def test_a_divided_tile_has_few_parts_unless_there_are_few_tiles() -> None:
    for pairs in (1, 7, 57, 66):
        for tiles in range(1, 500):
            divided = divided_tiles(tiles, pairs)
            assert 0 <= divided <= tiles
            assert (tiles - divided) % pairs == 0 or tiles < pairs
            if divided and tiles > pairs:
                assert pairs / divided <= MOST_PARTS


def test_the_fixed_instance_divides_nothing() -> None:
    assert not FIXED.divide
