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
    may_divide,
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
    ("tiles", "expected"), [(1, True), (17, True), (66, False), (68, False), (82, False), (83, True), (132, False)]
)
def test_a_last_wave_of_few_tiles_is_not_divided(tiles: int, expected: bool) -> None:
    assert may_divide(tiles, 66) == expected


def test_a_divided_tile_has_few_parts_unless_there_are_few_tiles() -> None:
    asked = [(size, found) for size in SIZES if isinstance(found := variant(*size), Tiled) and found.divide]
    assert len(asked) > 50
    for (m, n, _, units), found in asked:
        pairs = units // 2
        rows, columns = (128, 2 * found.columns) if found.common else (256, found.columns)
        tiles = -(-m // rows) * -(-n // columns)
        assert tiles % pairs > 0
        assert tiles < pairs or pairs / (tiles % pairs) <= MOST_PARTS


def test_the_fixed_instance_divides_nothing() -> None:
    assert not FIXED.divide
