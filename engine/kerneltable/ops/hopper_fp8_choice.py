"""Which instance of the Hopper FP8 sources serves a product.

The rules follow from sweeps over the weights of DeepSeek-V3, Qwen3-8B and 32B and Llama-3-70B at 1 to 4096 rows on an
H200 (132 multiprocessors, 2026-11-21). Up to FEW_ROWS the weight is streamed; up to SOME_ROWS the tile, and whether k
is divided, follow from a model of the time; beyond, from how evenly tiles fill the chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from kerneltable.ops.hopper import FITTING, tiles_to_divide

DEPTH = 128
FEW_ROWS, SOME_ROWS = 64, 256
ROOM = 227 * 1024
"""Shared memory that the blocks of a multiprocessor had in the sweeps. Whether an instance fits a chip is checked when
it is compiled, against the table."""

RESERVED = 2048 + 256
"""Of it, what each block needs beside its stages: alignment, barriers, the system's own."""

BESIDE = 1024 + 256
"""Of that, the system's own and barriers."""

MOST_STAGES = 12
MOST_SPLIT = 8
PACKED, PACKED_THREES = 0.86, 0.92
"""Large clusters all find room at once if they fill no more than this share of it: of more than three blocks, and of
three where four blocks or more share a multiprocessor."""

MANY_PARTS, LONG_PART = 0.02, 10
"""What a further part of k is worth, as a share of the chip that is filled, while parts have so many blocks of k."""

SMALL, SMALL_ROOM = 20_000_000, 0.8
"""Bytes of a weight up to which a launch leaves room for a block of the next one on each multiprocessor, if it fills
more than this share of it (up to 32 rows) or its clusters would not fit otherwise. 2112 x 7168 at 64 rows 7.6 instead
of 8.4 us, 4096 x 4096 at 32 rows 5.9, not 6.7 (2026-11-22)."""

SMALL_PART, SMALL_PART_8 = 7, 5
"""Blocks of k in a part of such a weight, at least: with more than 8 rows, and with less."""

FEW_STAGES = 28
"""Blocks of k in a part from which four stages are enough for up to 32 rows (5120 x 25600: 32.8 instead of 33.5 us)."""

PART_COLUMNS = MappingProxyType({64: 6, 80: 6, 96: 6, 112: 6, 128: 6, 144: 4, 160: 4})
"""Columns of a tile of hopper_fp8_block_parts.cu -> into how many parts of k it is divided at most."""

START, WAVE = 2.8, 0.8
EXCHANGE_PART = 0.28
UNIT, UNIT_COLUMNS = 0.05, 0.31
MEMORY, CACHE = 4.41e6, 13.5e6
"""The model for some rows, in microseconds: a launch and its end, a further tile of a block; for each part that a
cluster adds; for 128 of k and 128 rows, and for each 128 columns of a tile; bytes per microsecond from memory, and from
the L2 cache to all multiprocessors. For 56 products at 80 to 256 rows its choice took 0.7 % longer than the fastest of
ten instances, 8 % at most (2026-11-22)."""

DIVIDING, ADDING = 12, 8
"""For many rows, what dividing tiles along k costs: blocks (products of 128 x 128 x 128), and as many for each part of
a tile and 128 of its columns."""

SCATTERED, FEW_WAVES = 0.1, 9
"""What products of tiles narrower than 256 columns take more if they are divided, since those that run together stand
at different places of k then and find less in the L2 cache; and up to how many waves they are."""

CHUNK_BYTES = 128 * 64 * 2
"""Of 64 columns of a tile of the output, as hopper_fp8_block.cu stages them."""

SHARES = 128
"""Shared memory of a block of the tiled kernels for sharing work out (shares.cuh)."""

TILES = MappingProxyType({64: (8, 1), 128: (6, 1), 192: (5, 1), 256: (4, 2)})
"""Columns of a tile of hopper_fp8_block.cu -> its stages, and how many chunks of the output it stages."""

FEW_BLOCKS = 8
"""Blocks of k beyond which warps of their own start the stores of a tile of 256 columns: 10240 x 5120 at 8192 rows
takes 720 instead of 788 us then, 24576 x 1536 at 4096 278 instead of 291, 32768 x 512 at 4096 147 instead of 146."""

COLUMN_COSTS, TILE = MappingProxyType({128: 1.0, 192: 1.06, 256: 1.02}), 1.0
"""Columns of a tile for many rows -> what a column takes beside one of a tile of 128, and what a tile takes beside its
products, in blocks. A wider tile moves fewer bytes through caches and shared memory for as many products, a narrower
one runs two products at a time. Fitted, with the numbers above, to 40 products of 15 weights at 1024 to 8192 rows,
timed three times as `kerneltable bench` does: the choice took 0.5 % longer than the fastest of eight on average, 4 % at
most (2026-11-22). Two kinds of timings mislead: where each of many outputs has memory of its own wide tiles take up to
8 % longer, and what always comes behind something light, or first, up to 5 % less."""

WEIGHT, INPUT, NOTHING = 0, 1, 2
"""KT_COMMON: what two blocks of hopper_fp8_block.cu share. Up to 128 rows nothing is best (32768 x 512: 8.7 instead of
9.3 us; they would wait for each other), at 256 rows a weight tile (7168 x 16384: 49 instead of 52 us), and more so
beyond (209 instead of 213 at 1024 rows)."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An instance of hopper_fp8_block_stream.cu: its compile-time numbers.

    columns   rows of the input that a block takes
    split     blocks, a cluster, that take a part of k each
    together  blocks that share a multiprocessor, of this launch and of the next one, which starts early: each asks for
              so much shared memory that no more fit; 0: whatever fits
    """

    columns: int
    stages: int
    split: int
    together: int = 0

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the stages, or the partial sums that take their place."""
        share = ROOM // self.together - BESIDE if self.together else 0
        return max(1024 + self.stages * stage_bytes(self.columns), share)


@dataclass(frozen=True, slots=True)
class Tiled:
    """An instance of hopper_fp8_block.cu; with `divide` the tiles of the last wave or two are divided along k (no
    compile-time number). With `apart` warps of their own start the stores of a tile."""

    columns: int
    common: int
    stages: int
    group: int
    chunks: int = 1
    divide: bool = False
    apart: bool = False

    def shared_bytes(self, output: str) -> int:
        """Dynamic shared memory: the stages, and what is staged of an output of 16 bits."""
        staged = 0 if output == "f32" else self.chunks * CHUNK_BYTES
        return self.stages * tile_bytes(self.columns) + staged + SHARES


@dataclass(frozen=True, slots=True)
class Parted:
    """An instance of hopper_fp8_block_parts.cu: its compile-time numbers."""

    columns: int
    stages: int
    split: int

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the stages."""
        return self.stages * tile_bytes(self.columns) + SHARES


Choice = Stream | Tiled | Parted


def tile_bytes(columns: int) -> int:
    """Shared memory of a block of k in the tiled kernels: 128 rows of the input with their scales, the weight with its
    own, and two barriers."""
    return (128 + columns) * DEPTH + 512 + 128 + 16


def tiled(columns: int, common: int, divide: bool = False, apart: bool = False) -> Tiled:
    """The instance with so wide a tile."""
    stages, chunks = TILES[columns]
    return Tiled(columns, common, stages, 8, chunks, divide, apart)


FIXED = tiled(128, INPUT)
"""For every m alike: whole tiles, each row of which is summed in the order of k, whatever else is in the tile."""


def stage_bytes(columns: int) -> int:
    """Shared memory of a block of k in the streaming kernel: weight, input, scales."""
    return (64 + columns) * DEPTH + -(-columns * 4 // 128) * 128


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, multiprocessors: int) -> Choice:
    """The instance for a product of [m, k] with [n, k]."""
    blocks = -(-k // DEPTH)
    if m <= FEW_ROWS:
        return _stream(next(c for c in (8, 16, 32, 64) if c >= m), -(-n // 64), blocks, multiprocessors)
    if m <= SOME_ROWS:
        return min(_timed(m, n, k, multiprocessors), key=lambda one: one[0])[1]
    return _tiled(m, n, blocks, multiprocessors // 2)


def _stream(columns: int, tiles: int, blocks: int, multiprocessors: int) -> Stream:
    """k is split so that the blocks fill the chip evenly, each with as much shared memory as its neighbours leave it:
    a block of the next launch, which starts early, then takes the place of one that ends."""
    best, choice = -1.0, Stream(columns, 4, 1)
    small = tiles * blocks * 64 * DEPTH <= SMALL
    least = 4 if not small else SMALL_PART_8 if columns == 8 else SMALL_PART
    for split in range(1, MOST_SPLIT + 1):
        if split > 1 and split * least > blocks:
            break
        each = -(-tiles * split // multiprocessors)
        share, together = tiles * split / (each * multiprocessors), each
        full = split > 2 and share > (PACKED_THREES if split == 3 and each > 3 else PACKED)
        if small and (full or (columns <= 32 and share > SMALL_ROOM)):
            together += 1
        elif full:
            continue
        stages = (ROOM // together - RESERVED) // stage_bytes(columns)
        fewest = 3 if small else 5 if columns <= 32 and blocks < FEW_STAGES * split else 4
        more = 0.01 if small or columns == 8 else MANY_PARTS if blocks >= LONG_PART * split else 0.0
        score = min(share, PACKED) + more * split
        if stages >= fewest and score > best:
            best, choice = score, Stream(columns, min(stages, MOST_STAGES), split, together)
    return choice


def _timed(m: int, n: int, k: int, multiprocessors: int) -> Iterator[tuple[float, Choice]]:
    """Each instance for some rows, with the microseconds that the model gives it."""
    blocks, high = -(-k // DEPTH), -(-m // 128)
    common = NOTHING if high == 1 else WEIGHT

    def time(columns: int, each: float, tiles: int, fetched: int) -> float:
        """Of blocks that multiply `each` blocks of k one after the other, and fetch so many bytes for each."""
        unit = UNIT + UNIT_COLUMNS * columns / 128
        bounds = each * unit, (n * k + 2 * m * n) / MEMORY, tiles * blocks * fetched / CACHE
        return START + math.sqrt(math.sqrt(sum(bound**4 for bound in bounds)))

    for columns, most in PART_COLUMNS.items():
        tiles = high * -(-n // columns)
        for split in range(2, min(most, blocks // 4) + 1):
            if tiles * split <= FITTING[split] * multiprocessors:
                taken = time(columns, blocks / split, tiles, (128 + columns) * DEPTH)
                yield taken + EXCHANGE_PART * split, Parted(columns, _stages(columns), split)
    for columns in (64, 128, 192) if common == NOTHING else (128, 192):
        tiles = high * -(-n // columns)
        waves = -(-tiles // multiprocessors)
        fetched = (128 + (columns if common == NOTHING else columns // 2)) * DEPTH
        yield time(columns, waves * blocks, tiles, fetched) + (waves - 1) * WAVE, tiled(columns, common)


def _stages(columns: int) -> int:
    """As many as a multiprocessor has room for; an even number where two products are under way."""
    most = min(8, (ROOM - RESERVED) // tile_bytes(columns))
    return most - most % 2 if columns <= 128 else most


def _tiled(m: int, n: int, blocks: int, pairs: int) -> Tiled:
    """The tile whose waves over the chip take least time, whole or with the last one or two divided along k."""
    best, choice = float("inf"), FIXED
    for columns, each in COLUMN_COSTS.items():
        tiles, narrow = -(-m // 256) * -(-n // columns), columns < 256
        apart = not narrow and blocks > FEW_BLOCKS
        block = blocks * columns / 128 * each + TILE
        whole, divided = -(-tiles // pairs) * block, float("inf")
        if (parted := tiles_to_divide(tiles, pairs)) and not (narrow and tiles > FEW_WAVES * pairs):
            products = (tiles + parted * (SCATTERED if narrow else 0)) / pairs * block
            divided = products + DIVIDING + ADDING * pairs / parted * columns / 128
        if min(whole, divided) < best:
            best, choice = min(whole, divided), tiled(columns, WEIGHT, divided < whole, apart)
    return choice
