"""FP8 weights with 16-bit inputs on Hopper: which instance of csrc/cuda serves how many rows.

Few rows stream the weight once (hopper_w8a16.cu: small blocks, several to a multiprocessor, k split over clusters),
many keep the tensor cores busy (hopper_w8a16_wide.cu: blocks that stay). Figures: H200, 2026-11-21.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from kerneltable.ops.cuda_code import Instance, Product
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW, DEPTH, EXACT_EXPONENTS, EXPONENT_BYTES, TILE_BYTES
from kerneltable.ops.hopper import DTYPE_CODES, FITTING, ceil_div

TYPES = (BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32)
WIDE_TYPES = (*TYPES[:5], POINTER, POINTER, *TYPES[5:], INT32)

STAGES = MappingProxyType({8: (10, 7, 5, 4), 16: (9, 5, 4, 3), 32: (6, 4, 3), 64: (4, 3)})
"""Columns -> stages of a block of which two, three ... share a multiprocessor: as many as its shared memory holds."""

FEWEST = 16
"""Columns up to which `_few` chooses."""

PARTS = MappingProxyType({1: 1.0, 2: 1.0, 3: 0.92, 4: 0.91, 5: 0.86, 8: 0.86})
"""Parts of k that `_few` considers -> share of the room for blocks that clusters of so many fill at most."""

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
"""Bytes of a weight from which what is read of it for 9 to 16 rows makes room in the L2 cache first: it would push out
the input, which all blocks read. 5120 x 25600 at 16 rows: 33.9 instead of 34.5 us, with copies of 0.25 and of 2 GB that
take turns. A smaller weight gains where few copies take turns, since a part of them stays in the cache, but next to
nothing with 2 GB of them, as in a model."""

UNEVEN = 0.95
"""Large blocks are taken for up to FEWEST rows if small ones fill the chip less evenly (7168 x 16384, one row: 28.5
instead of 29.7 us), and beyond k is divided where that fills it better (12288 x 4096, 64 rows: 16.7, not 19.5)."""

RESCALED = 3
"""As BY_BLOCK, for scales with which one sum can change its unit from block to block (hopper_w8a16.rescales). Wide
tiles do so; narrower ones are faster with a second sum."""

LARGE = MappingProxyType({BY_ROW: (40, 0.9), BY_BLOCK: (40, 0.0), RESCALED: (40, 0.0), BY_32: (20, 2.0)})
FEW_LARGE, LEAST_SHARE = 40, 0.8
"""What a scale covers -> when, for more than FEWEST rows, one block to a multiprocessor that takes 128 or 192 rows of
the weight, with as many stages as there is room for, is taken instead of several of 64 rows: from so many blocks of k
in a part on, if those of 64 rows fill less than a share of the chip or there are more than 32 rows of the input, and
the large ones fill at least LEAST_SHARE of it. 5120 x 25600 at 64 rows: 43.6, 42.7 and 47.1 us instead of 49.6, 52.8
and 49.4 (scales of rows, blocks, 32 columns). A single block minds a slow clock more, as it is after heavy work: these
figures are. FEW_LARGE: the blocks of k for fewer rows."""

MOST_STAGES = MappingProxyType({2: 12, 3: 7})
"""Groups of such a block -> its stages at most. 5120 x 25600 at one row with scales of blocks: 33.0 instead of 33.4 us
with seven, not eight; as many for more rows and other scales."""

ROOM, BLOCK_BYTES = 232448 - 1024 - 256, 1024 + 1024 + 256
HALF = (ROOM + BLOCK_BYTES) // 2 - BLOCK_BYTES
"""The shared memory for stages of a block that is alone, what each block takes beside them, and the shared memory if
there are two."""

SPLITS = (8, 5, 4, 2, 1)
"""Of k for few rows. Clusters of three, six or seven leave too many multiprocessors empty."""

NEIGHBOURS = 16
"""Multiprocessors of a group (GPC), at least; a cluster lies within one."""

WIDE_COLUMNS, WIDE_STAGES = 256, 5

TIMES = MappingProxyType({BY_ROW: (0.66, 1.26), BY_BLOCK: (0.9, 1.6), RESCALED: (0.86, 1.41), BY_32: (0.82, 1.31)})
"""What a scale covers -> microseconds for 128 of k of a tile of 128 x 128, and of one of 128 x 256 that stays."""

AROUND = (3.3, 2.0)
"""Microseconds that such a tile takes beside."""

DIVIDED = MappingProxyType(
    {BY_ROW: (1.0, 0.985), BY_BLOCK: (1.05, math.inf), RESCALED: (1.05, math.inf), BY_32: (1.02, 0.995)}
)
DIVIDING, LEAST_RUN = 14.0, 4
"""What a scale covers -> the time of tiles that are divided along k, beside that of whole ones: of blocks alone, and of
two that fetch a common input tile, which takes less power (with scales of blocks they wait too long for each other).
Dividing takes DIVIDING microseconds more, and a multiprocessor's part has LEAST_RUN blocks of k at least.

Fitted to 135 products, 13 weights with each kind of scale but BY_BLOCK, at 256 to 4096 rows, H200, 2026-11-22: the
choice took 0.2 % longer than the fastest on average, 4 % at most."""


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


@dataclass(frozen=True, slots=True)
class Wide:
    """An instance of hopper_w8a16_wide.cu; inputs blocks fetch a common input tile. With `divide` the tiles of the last
    wave or two are divided along k (no compile-time number)."""

    inputs: int
    early: bool = True
    divide: bool = False


def clusters(together: int, split: int, multiprocessors: int) -> int:
    """How many clusters of `split` blocks run at a time, with `together` blocks to a multiprocessor, two at least; what
    fits with one is FITTING."""
    if split <= 2:  # multiprocessors come in pairs
        return multiprocessors * together // split
    return multiprocessors // NEIGHBOURS * (NEIGHBOURS * together // split)


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant | Wide:
    """The instance for a product of [m, k] with [n, k].

    scales   what a scale covers: BY_ROW, BY_BLOCK, RESCALED, BY_32

    Few rows: as few blocks to a multiprocessor as let all clusters run at once, or one more where their stages still
    hold most of a block's part of k (16384 x 1024, one row: 6.1 instead of 7.2 us; 7168 x 2048, 16 rows: 6.4, not 7.1).
    """
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
    if m <= 64:
        columns = next(c for c in STAGES if c >= m)
        if columns <= FEWEST:
            few = _few(columns, n, k, scales, multiprocessors)
            return replace(few, once=True) if columns == FEWEST and n * k > HUGE else few
        most = max(1, min(2.5 * multiprocessors / tiles, blocks // 4))
        split = next(s for s in SPLITS if s <= most)
        if split == 1 and blocks >= 8 and _alike(tiles, multiprocessors) < 0.8:
            split = 1 if _alike(2 * tiles, multiprocessors) < UNEVEN else 2
        shares = tuple(enumerate(STAGES[columns], 2))[: 2 if split > 2 else None]  # then there are few tiles
        fitting = [share for share in shares if clusters(share[0], split, multiprocessors) >= tiles] or shares[-1:]
        more = [share for share in fitting[1:2] if split <= 2 and share[1] + 3 >= blocks / split]
        together, stages = (more or fitting)[0]
        small = Variant(1, columns, stages, split, together)
        if columns == 64 or tiles * split < LARGE[scales][1] * together * multiprocessors:
            return _large(columns, n, blocks, scales, LARGE[scales][0], multiprocessors) or small
        return small
    halves = tiles * ceil_div(m, 128)
    if 2 * halves <= multiprocessors:
        return Variant(1, 128, 4, _few_parts(halves, blocks, multiprocessors))
    pairs = ceil_div(n, 128)
    parts = pairs * ceil_div(m, 128)
    split = _few_parts(parts, blocks, multiprocessors)
    each, wide = TIMES[scales]
    time = ceil_div(parts * split, multiprocessors) * (each * blocks / split + AROUND[0])
    timed: list[tuple[float, Variant | Wide]] = [(time, Variant(2, 128, 4, split))]
    high = ceil_div(m, WIDE_COLUMNS)
    timed.append((ceil_div(pairs * high, multiprocessors) * (wide * blocks + AROUND[1]), Wide(1)))
    for inputs, share in enumerate(DIVIDED[scales], 1):
        tiles, workers = ceil_div(pairs, inputs) * high, multiprocessors // inputs
        if tiles % workers and tiles * blocks >= LEAST_RUN * workers:
            time = tiles / workers * wide * blocks * share + ceil_div(tiles, workers) * AROUND[1] + DIVIDING
            timed.append((time, Wide(inputs, divide=True)))
    return min(timed, key=lambda one: one[0])[1]


def _alike(blocks: int, multiprocessors: int) -> float:
    """How evenly so many blocks fill the chip: the share that is taken of places as many as the fullest one has."""
    return blocks / (ceil_div(blocks, multiprocessors) * multiprocessors)


def _few(columns: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant:
    """The instance for as many rows as FEWEST at most."""
    tiles, blocks, weight = ceil_div(n, 64), ceil_div(k, DEPTH), math.log(n * k / WEIGHT)
    if columns == 8 and n * k <= SMALL:
        pair = _large(columns, n, blocks, scales, PAIR_BLOCKS, multiprocessors, half=True)
        if pair is not None:
            return pair
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
            if together > 4 and split > 1 and columns == FEWEST:
                continue  # they take more than 72 registers a thread, with which five blocks have none left
            alike = _alike(tiles * split, multiprocessors)
            score = alike + more * math.log(split) - (TOO_FULL if share > used else -TOO_EMPTY) * (share - used)
            if score > best:
                best, even, choice = score, alike, Variant(1, columns, stages, split, together)
    large = _large(columns, n, blocks, scales, FEW_LARGE, multiprocessors) if even < UNEVEN else None
    return large or choice


def _large(
    columns: int, n: int, blocks: int, scales: int, fewest: int, multiprocessors: int, *, half: bool = False
) -> Variant | None:
    """One block to a multiprocessor, if k is long (`fewest` blocks in a part) and a number of parts lets such blocks
    fill the chip, all at once; two with half the part each for few rows, if they have room for four stages. With `half`
    one of two groups that leaves half of the multiprocessor to the next launch."""
    for groups in (2,) if half else (2, 3):
        tiles = ceil_div(n, 64 * groups)
        for split in (1, 2, 4):
            share = tiles * split / multiprocessors
            if blocks >= fewest * split and LEAST_SHARE <= share <= FITTING[split]:
                each = stage_bytes(groups, columns, scales)
                if half:
                    return Variant(groups, columns, min(MOST_STAGES[groups], HALF // each), split, 2)
                if columns <= FEWEST and share <= FITTING.get(2 * split, 0) and 4 * each <= HALF:
                    return Variant(groups, columns, min(MOST_STAGES[groups], HALF // each), 2 * split, 2)
                return Variant(groups, columns, min(MOST_STAGES[groups], ROOM // each), split, 1)
    return None


def _few_parts(tiles: int, blocks: int, multiprocessors: int) -> int:
    """Into how many parts of k large tiles are split: their blocks, one to a multiprocessor, run all at once."""
    return next((s for s in (3, 2) if s <= blocks // 4 and tiles * s <= FITTING[s] * multiprocessors), 1)


@lru_cache(maxsize=1024)
def rows_of_each(n: int, k: int, scales: int, multiprocessors: int) -> tuple[int, ...]:
    """For each instance that a weight [n, k] is ever multiplied with, one number of rows for which it is taken."""
    edges = (*STAGES, *range(128, 8193, 128), 16384, 32768, 65536)
    found: dict[Variant | Wide, int] = {}
    for m in edges:
        found.setdefault(variant(m, n, k, scales, multiprocessors), m)
    return tuple(found.values())


def instances(products: Iterable[Product], input: str, output: str) -> Iterator[Instance]:
    """What cuda_instances asks: every instance for these products, a dtype of the input and one of the output."""
    asked = tuple(products) if input in EXACT_EXPONENTS else ()
    for scales in TIMES:
        for choice in dict.fromkeys(variant.__wrapped__(m, n, k, scales, units) for m, n, k, units in asked):
            yield instance_of(choice, scales, input, output)


def stage_bytes(groups: int, columns: int, scales: int) -> int:
    """Shared memory of a block of k in hopper_w8a16.cu: 64 rows of the weight a group, and the input."""
    return groups * (TILE_BYTES + (EXPONENT_BYTES if scales == BY_32 else 0)) + columns * DEPTH * 2


def instance_of(choice: Variant | Wide, scales: int, dtype: str, output: str) -> Instance:
    """The code for an input dtype ("bf16", "f16") and an output dtype, with the shared memory that it needs."""
    covers = BY_BLOCK if scales == RESCALED else scales
    types = {"SCALES": covers, "IN": DTYPE_CODES[dtype], "OUT": DTYPE_CODES[output]}
    exponents = EXPONENT_BYTES if scales == BY_32 else 0
    kinds: tuple[Any, ...]
    if isinstance(choice, Wide):
        file, kinds = "hopper_w8a16_wide", WIDE_TYPES
        turns = int(scales == BY_BLOCK and choice.inputs == 1)
        numbers = {"INPUTS": choice.inputs, "TURNS": turns, "RESCALE": int(scales == RESCALED)}
        stage = 2 * (TILE_BYTES // 2 + exponents) + WIDE_COLUMNS * DEPTH
        shared = 1024 + WIDE_STAGES * stage + 2 * 2 * 32 * 64 * 2  # two warpgroups, two halves of 32 x 64 results each
    else:
        file, kinds = "hopper_w8a16", TYPES
        numbers = {
            "GROUPS": choice.groups, "COLUMNS": choice.columns, "STAGES": choice.stages, "SPLIT": choice.split,
            "ONCE": int(choice.once),
        }  # fmt: skip
        stage = stage_bytes(choice.groups, choice.columns, scales)
        shared = 1024 + max(choice.stages * stage, choice.columns * (64 * choice.groups + 4) * 4)
    defines = tuple((f"KT_{key}", value) for key, value in sorted((numbers | types).items()))
    return Instance(f"cuda/{file}.cu", file, kinds, shared, defines)
