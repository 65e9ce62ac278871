"""What a product with mma.sync is reckoned to cost: in which direction each fact moves it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kerneltable.ops.cuda_code import Product
from kerneltable.ops.mma_work import ALONE, Tiling, fitting, work

PRODUCT = Product(64, 4096, 7168, 100)
TILING = Tiling(blocks=200, step=1000.0, together=2, waits=True)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_tile_that_is_dearer_by_the_column_is_dearer(parts: int) -> None:
    assert work(replace(TILING, step=2000.0), parts, PRODUCT) > work(TILING, parts, PRODUCT)


def test_nothing_is_faster_than_reading_the_weight_once() -> None:
    assert work(replace(TILING, step=0.5), 1, PRODUCT) == work(replace(TILING, step=1.0), 1, PRODUCT)
    assert work(TILING, 1, PRODUCT._replace(k=14336)) > work(TILING, 1, PRODUCT)


def test_a_block_more_than_the_multiprocessors_hold_is_work_for_one_of_them() -> None:
    full, over = (work(replace(TILING, blocks=blocks), 1, PRODUCT) for blocks in (200, 201))
    assert over > 1.4 * full
    assert work(replace(TILING, blocks=150), 1, PRODUCT) == full


def test_a_block_that_waits_takes_longer_by_itself_and_one_that_does_not_takes_as_long_as_ever() -> None:
    alone = replace(TILING, blocks=100)
    assert work(alone, 1, PRODUCT) > work(replace(alone, waits=False), 1, PRODUCT)
    assert work(TILING, 1, PRODUCT) == work(replace(TILING, waits=False), 1, PRODUCT)
    assert 1 < ALONE < 2, "two blocks that share a multiprocessor must not take longer than one after the other"


def test_parts_that_fill_idle_multiprocessors_pay_and_more_parts_do_not() -> None:
    few = replace(TILING, blocks=25)
    times = [work(few, parts, PRODUCT) for parts in (1, 2, 4, 8)]
    assert times[0] > times[1] > times[2]
    assert work(TILING, 2, PRODUCT) > work(TILING, 1, PRODUCT)


def test_a_short_k_is_not_worth_a_second_launch() -> None:
    few, short = replace(TILING, blocks=25), PRODUCT._replace(k=128)
    assert work(few, 2, short) > work(few, 1, short)


@pytest.mark.parametrize(
    ("bytes", "chip", "together"),
    [(50_176, 99 * 1024, 2), (50_177, 99 * 1024, 1), (99 * 1024, 99 * 1024, 1), (99 * 1024 + 1, 99 * 1024, 0)],
)
def test_each_block_takes_a_kibibyte_more_than_it_asks_for(bytes: int, chip: int, together: int) -> None:
    assert fitting(bytes, chip) == together
