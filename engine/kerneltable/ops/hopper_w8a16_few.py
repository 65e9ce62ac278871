"""FP8 weights with 16-bit inputs on Hopper, up to 64 rows: which instance of csrc/cuda/hopper_w8a16.cu serves them.

The weight is streamed once, by blocks of 64 of its rows, several to a multiprocessor, or large ones of 128 to 256 rows;
k is split over clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, DEPTH, EXPONENT_BYTES, RESCALED, TILE_BYTES
from kerneltable.ops.hopper import FITTING, ceil_div

STAGES = MappingProxyType({8: (10, 7, 5, 4), 16: (9, 5, 4, 3), 32: (6, 4, 3), 64: (4, 3)})
"""Columns -> stages of a block of which two, three ... share a multiprocessor: as many as its shared memory holds."""

FEWEST = 16
"""Columns up to which `_few` chooses."""

PARTS = MappingProxyType({1: 1.0, 2: 1.0, 3: 0.92, 4: 0.91, 5: 0.86, 7: 0.85, 8: 0.86})
"""Parts of k that `_few` considers -> share of the room for blocks that clusters of so many fill at most. Seven only
with five blocks to a multiprocessor, of which fewer would not hold them (4608 x 7168, one row: 9.6 to 9.9, not 10.4 to
11.5 us), and with four of FEWEST columns (4096 x 7168: 9.6, not 9.7)."""

ROOM_USED, ROOM_WEIGHT, TOO_FULL, TOO_EMPTY = 0.765, 0.233, 1.65, 12.0
MORE_PARTS, PARTS_WEIGHT, WEIGHT = 0.25, 0.094, 30e6
"""What `_few` prefers: blocks that fill each multiprocessor alike; a share of the room for blocks that is left to the
next launch, less for larger weights, whose blocks then start early; many parts of k, for small weights. Fitted
to 84 products (14 weights, 1 and 16 rows, each kind of scale) in 5 to 25 instances each, H200, 2026-11-22: its choice
takes 0.3 % longer than the fastest on average, 6 % at most."""

SMALL, PAIR_BLOCKS = 20e6, 8
"""Bytes of a weight up to which blocks of 128 of its rows are taken for few rows, one to a multiprocessor that has room
for the next launch's too, if they fill the chip with so many blocks of k each, at least. 7168 x 2048 at one row: 5.3,
5.2 and 5.6 instead of 5.8, 5.7 and 5.8 us (scales of rows, blocks, 32 columns); 16384 x 1024: 5.4, 5.5 and 5.5 instead
of 5.5, 5.8 and 5.9."""

HUGE = 100e6
"""Bytes of a weight from which what is read of it for up to FEWEST rows makes room in the L2 cache first: it would push
out the input, which all blocks read. With copies of 2 GB that take turns, 12 weights: 1 to 2 % at 16 rows, 1 % at 8,
half of one at one row. A smaller weight gains where few copies take turns, since a part of them stays in the cache, but
next to nothing with 2 GB of them, as in a model."""

UNEVEN = 0.95
"""How evenly blocks fill the chip: large ones are considered if small ones do less so (7168 x 16384, one row: 28.5, not
29.7 us), and beyond FEWEST rows k is divided where that helps (12288 x 4096, 64 rows: 16.7, not 19.5)."""

FEW_LARGE, EMPTIER = ((2, 40, 0.8), (3, 30, 0.72), (4, 30, 0.72)), 0.06
"""Large blocks for up to FEWEST rows, in this order: groups of 64 rows of the weight; blocks of k in a part, and the
share of the multiprocessors that they fill, at least. This share may be EMPTIER than what small ones fill (beyond HUGE
bytes of all places, else of those on multiprocessors as full as the fullest). At one row, with scales of blocks: 6144 x
16384 26.0, not 28.0 us, 28672 x 8192 56.9, not 59.6, 5120 x 25600 32.3, not 32.6 with seven stages."""

LARGE, EXACT_LARGE = ((2, 0.94), (3, 0.72), (4, 0.72)), 20
FEWEST_BLOCKS, EVEN_BLOCKS, LAST_SHARE = 30, 40, 0.8
"""The same for more rows: groups, and their share. Blocks of k in a part, at least: EXACT_LARGE with scales of 32
columns; else FEWEST_BLOCKS where small blocks are uneven, and EVEN_BLOCKS for more than 32 rows. Where none fits, two
groups that fill LAST_SHARE, with EVEN_BLOCKS (with scales of blocks for more than 32 rows only). Four groups have no
registers for a second sum of 64 columns. 28672 x 8192 at 64 rows takes 0.65 (scales of rows) and 0.77 (32 columns) of
the time of small blocks, 14336 x 14336 at 32 rows 0.82 to 0.92 of that of two groups, 18432 x 7168 0.87 to 0.97.

Fitted to 19 weights with each kind of scale, 1 to 64 rows, copies of 2 GB. Where the choice changed for 20 others it
took 2.8 % less than before on average; two shapes took up to 5 % more, for which LAST_SHARE was then narrowed (H200,
2026-11-22)."""

LARGE_STAGES = 4
"""Of a large block that is alone on a multiprocessor: more are mostly slower, though there is room for seven or eight
(5120 x 25600 at one row 32.3 us with four, 32.6 with seven; 7168 x 16384 at 64 rows 5 % between four and seven). With
two groups and 32 columns one more."""

ROOM, BLOCK_BYTES = 232448 - 1024 - 256, 1024 + 1024 + 256
HALF = (ROOM + BLOCK_BYTES) // 2 - BLOCK_BYTES
"""The shared memory for stages of a block that is alone, what each block takes beside them, and the shared memory if
there are two."""

SPLITS = (8, 5, 4, 2, 1)
"""Of k, for small blocks and more than FEWEST rows. Clusters of three, six or seven leave too many multiprocessors
empty."""

NEIGHBOURS = 16
"""Multiprocessors of a group (GPC), at least; a cluster lies within one."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An instance of hopper_w8a16.cu, and how it is launched.

    together   blocks to a multiprocessor: each asks for so much shared memory that no more fit, or those of the next
               kernel, which starts early, crowd on some multiprocessors (8192 x 28672, 64 rows: 118 instead of 77 us);
               0: whatever fits
    early      it starts while the kernel before it runs
    once       what it reads of the weight makes room in the L2 cache first
    """

    groups: int
    columns: int
    stages: int
    split: int
    together: int = 0
    early: bool = True
    once: bool = False


def clusters(together: int, split: int, multiprocessors: int) -> int:
    """How many clusters of `split` blocks run at a time, with `together` blocks to a multiprocessor, two at least; what
    fits with one is FITTING."""
    if split <= 2:  # multiprocessors come in pairs
        return multiprocessors * together // split
    return multiprocessors // NEIGHBOURS * (NEIGHBOURS * together // split)


def few_rows(m: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant:
    """The instance for m rows, 64 at most; the rest as `hopper_w8a16_variants.variant` has it.

    As few blocks to a multiprocessor as let all clusters run at once, or one more where their stages still hold most of
    a block's part of k (16384 x 1024, one row: 6.1 instead of 7.2 us; 7168 x 2048, 16 rows: 6.4, not 7.1).
    """
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
    columns = next(c for c in STAGES if c >= m)
    if columns <= FEWEST:
        return replace(_few(columns, n, k, scales, multiprocessors), once=n * k > HUGE)
    most = max(1, min(2.5 * multiprocessors / tiles, blocks // 4))
    split = next(s for s in SPLITS if s <= most)
    if split == 1 and blocks >= 8 and _alike(tiles, multiprocessors) < 0.8:
        split = 1 if _alike(2 * tiles, multiprocessors) < UNEVEN else 2
    shares = tuple(enumerate(STAGES[columns], 2))[: 2 if split > 2 else None]  # then there are few tiles
    fitting = [share for share in shares if clusters(share[0], split, multiprocessors) >= tiles] or shares[-1:]
    more = [share for share in fitting[1:2] if split <= 2 and share[1] + 3 >= blocks / split]
    together, stages = (more or fitting)[0]
    if scales == BY_32:
        fewest = EXACT_LARGE
    elif _alike(tiles * split, together * multiprocessors) < UNEVEN:
        fewest = FEWEST_BLOCKS
    else:
        fewest = EVEN_BLOCKS if columns == 64 else blocks + 1
    summed = scales in (BY_BLOCK, RESCALED)
    kinds = [(groups, fewest, share) for groups, share in LARGE if not (groups == 4 and summed and columns == 64)]
    if columns == 64 or not summed:
        kinds.append((2, EXACT_LARGE if scales == BY_32 else EVEN_BLOCKS, LAST_SHARE))
    groups, parts = _large(kinds, n, blocks, multiprocessors)
    if groups:
        return Variant(groups, columns, LARGE_STAGES + (groups == 2 and columns == 32), parts, 1)
    return Variant(1, columns, stages, split, together)


def _alike(blocks: int, multiprocessors: int) -> float:
    """How evenly so many blocks fill the chip: the share that is taken of places as many as the fullest one has."""
    return blocks / (ceil_div(blocks, multiprocessors) * multiprocessors)


def _few(columns: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant:
    """The instance for as many rows as FEWEST at most."""
    tiles, blocks, weight = ceil_div(n, 64), ceil_div(k, DEPTH), math.log(n * k / WEIGHT)
    if columns == 8 and n * k <= SMALL:
        groups, split = _large([(2, PAIR_BLOCKS, 0.8)], n, blocks, multiprocessors)
        if groups:
            return Variant(2, columns, HALF // stage_bytes(2, columns, scales), split, 2)
    only_five = n * k <= HUGE and 4 * multiprocessors < 2 * tiles
    used, more = ROOM_USED + ROOM_WEIGHT * weight, MORE_PARTS - PARTS_WEIGHT * weight
    best, even, choice = -math.inf, 1.0, Variant(1, columns, STAGES[columns][-1], 1, len(STAGES[columns]) + 1)
    for split, packed in PARTS.items():
        if split > 1 and 4 * split > blocks:
            break
        each = ceil_div(tiles * split, multiprocessors)
        for together, stages in enumerate(STAGES[columns], 2):
            share = tiles * split / (together * multiprocessors)
            if together < each or share > (packed if together > 2 else FITTING.get(split, packed)):
                continue
            if split == 7 and (together != 5 or share > 0.8 if columns < FEWEST else together != 4 or share < 0.8):
                continue
            if together > 4 and split > 1 and columns == FEWEST and not (only_five and split == 2):
                continue  # with three stages and 72 registers a thread they are slower
            alike = _alike(tiles * split, multiprocessors)
            score = alike + more * math.log(split) - (TOO_FULL if share > used else -TOO_EMPTY) * (share - used)
            if score > best:
                best, choice = score, Variant(1, columns, stages, split, together)
                even = share if n * k > HUGE else alike
    if even >= UNEVEN:
        return choice
    kinds = ((groups, fewest, max(least, even - EMPTIER)) for groups, fewest, least in FEW_LARGE)
    groups, split = _large(kinds, n, blocks, multiprocessors)
    if groups == 2:
        each, share = stage_bytes(2, columns, scales), ceil_div(n, 128) * split / multiprocessors
        if share <= FITTING.get(2 * split, 0) and 4 * each <= HALF:  # two to a multiprocessor, with half the part each
            return Variant(2, columns, HALF // each, 2 * split, 2)
        return Variant(2, columns, min(12, ROOM // each), split, 1)
    return Variant(groups, columns, LARGE_STAGES, split, 1) if groups else choice


def _large(kinds: Iterable[tuple[int, int, float]], n: int, blocks: int, multiprocessors: int) -> tuple[int, int]:
    """The groups of large blocks, one to a multiprocessor, that all run at once, and into how many parts they split k.

    kinds     groups, blocks of k in a part and share of the multiprocessors at least; the first that fits is taken
    returns   (0, 1) if none does
    """
    for groups, fewest, least in kinds:
        tiles = ceil_div(n, 64 * groups)
        for split in (1, 2, 4) if groups == 2 else (1, 2, 3, 4):
            if blocks >= fewest * split and least <= tiles * split / multiprocessors <= FITTING[split]:
                return groups, split
    return 0, 1


def stage_bytes(groups: int, columns: int, scales: int) -> int:
    """Shared memory of a block of k in hopper_w8a16.cu: 64 rows of the weight a group, and the input."""
    return groups * (TILE_BYTES + (EXPONENT_BYTES if scales == BY_32 else 0)) + columns * DEPTH * 2
