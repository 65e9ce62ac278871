"""Which instance of the Hopper FP8 sources serves a product.

The rules follow from sweeps over fourteen weights of DeepSeek-V3, Qwen3-8B and 32B and Llama-3-70B at 1 to 4096 rows
on an H200 (132 multiprocessors, 2026-11-21). Times in them are counted in blocks: the 128 x 128 x 128 products that a
multiprocessor does one after the other, 0.4 us each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

DEPTH = 128
FEW_ROWS, SOME_ROWS = 64, 128
"""Up to FEW_ROWS the weight is streamed; up to SOME_ROWS it is if it is neither long nor wide."""

LONG_K, WIDE_N = 16384, 8192
ROOM = 227 * 1024
"""Shared memory that the blocks of a multiprocessor had in the sweeps. Whether an instance fits a chip is checked when
it is compiled, against the table."""

RESERVED = 2048 + 256
"""Of it, what each block needs beside its stages: alignment, barriers, the system's own."""

MOST_STAGES = 12
MOST_SPLIT = 8
PACKED, PACKED_THREES = 0.86, 0.92
"""Large clusters all find room at once if they fill no more than this share of it: of more than three blocks, and of
three where four blocks or more share a multiprocessor."""

DIVIDING = 20
"""Blocks that dividing tiles along k costs: partial sums are written, waited for and read."""

MOST_PARTS = 4
"""Into which a tile is divided, unless there are few tiles: one block adds them all, one after the other. Of 68 tiles
for 66 pairs two would be left, in 33 parts each: 67 us where others take 32 (2112 x 7168, 1024 rows)."""

WIDE_TILE = 1.05
"""How much longer a column of a tile of 192 takes than one of 128: its sums are not added while products run."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An instance of hopper_fp8_block_stream.cu: its compile-time numbers."""

    columns: int
    stages: int
    split: int

    @property
    def stage_bytes(self) -> int:
        return stage_bytes(self.columns)


@dataclass(frozen=True, slots=True)
class Tiled:
    """An instance of hopper_fp8_block.cu; common names what a pair of blocks shares, 0 the weight, 1 the input tile;
    with `divide` the tiles of the last wave are divided along k (no compile-time number)."""

    columns: int
    common: int
    stages: int
    group: int
    divide: bool = False


FIXED = Tiled(128, 1, 6, 8)
"""For every m alike: whole tiles, each row of which is summed in the order of k, whatever else is in the tile."""


def stage_bytes(columns: int) -> int:
    """Shared memory of a block of k in the streaming kernel: weight, input, scales."""
    return (64 + columns) * DEPTH + -(-columns * 4 // 128) * 128


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int) -> Stream | Tiled:
    """The instance for a product of [m, k] with [n, k]."""
    blocks = -(-k // DEPTH)
    if m <= FEW_ROWS or (m <= SOME_ROWS and n <= WIDE_N and k < LONG_K):
        return _stream(next(c for c in (8, 16, 32, 64, 128) if c >= m), -(-n // 64), blocks, multiprocessors)
    return _tiled(m, n, blocks, multiprocessors // 2)


def may_divide(tiles: int, pairs: int) -> bool:
    """Whether the tiles of the last wave over so many pairs of multiprocessors have few enough parts when divided."""
    last = tiles % pairs
    return last > 0 and (tiles < pairs or last * MOST_PARTS >= pairs)


def _stream(columns: int, tiles: int, blocks: int, multiprocessors: int) -> Stream:
    """k is split so that the blocks fill the chip evenly, each with as much shared memory as its neighbours leave it:
    a block of the next launch, which starts early, then takes the place of one that ends."""
    fewest = 5 if columns <= 32 else 4
    best, choice = -1.0, Stream(columns, 4, 1)
    for split in range(1, MOST_SPLIT + 1):
        if split > 1 and split * 4 > blocks:
            break
        each = max(-(-tiles * split // multiprocessors), 2 if columns == 128 else 1)
        stages = (ROOM // each - RESERVED) // stage_bytes(columns)
        share = tiles * split / (each * multiprocessors)
        if split > 2 and share > (PACKED_THREES if split == 3 and each > 3 else PACKED):
            continue
        score = min(share, PACKED) + (0.01 * split if columns == 8 else 0.0)
        if stages >= fewest and score > best:
            best, choice = score, Stream(columns, min(stages, MOST_STAGES), split)
    return choice


def _tiled(m: int, n: int, blocks: int, pairs: int) -> Tiled:
    """The tile whose waves over the chip take least time, whole or with the last wave divided along k."""
    common, rows = (1, 128) if m <= SOME_ROWS else (0, 256)
    best, choice = float("inf"), Tiled(128, common, 6, 8)
    for columns, stages in ((128, 6), (192, 5)):
        tiles = -(-m // rows) * -(-n // (columns * (1 + common)))
        block = blocks * columns / 128 * (1.0 if columns == 128 else WIDE_TILE)
        whole, divided = -(-tiles // pairs) * block, float("inf")
        if may_divide(tiles, pairs):
            divided = tiles / pairs * block + DIVIDING
        if min(whole, divided) < best:
            best, choice = min(whole, divided), Tiled(columns, common, stages, 8, divided < whole)
    return choice
