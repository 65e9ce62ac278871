"""FP8 weights with 16-bit inputs on Hopper: which instance of csrc/cuda serves how many rows.

Few rows stream the weight once (hopper_w8a16.cu; hopper_w8a16_few.py chooses), many keep the tensor cores busy
(hopper_w8a16_wide.cu: blocks that stay). Figures: H200, 2026-11-21.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from kerneltable.ops.cuda_code import Instance, Product
from kerneltable.ops.cuda_launch import BY_VALUE, INT32, POINTER
from kerneltable.ops.fragment_tiles import (
    BY_32,
    BY_BLOCK,
    BY_ROW,
    DEPTH,
    EXACT_EXPONENTS,
    EXPONENT_BYTES,
    RESCALED,
    TILE_BYTES,
)
from kerneltable.ops.hopper import DTYPE_CODES, FITTING, ceil_div
from kerneltable.ops.hopper_w8a16_few import STAGES, Variant, few_rows, stage_bytes

TYPES = (BY_VALUE, POINTER, POINTER, POINTER, POINTER, INT32, INT32, INT32)
WIDE_TYPES = (*TYPES[:5], POINTER, POINTER, *TYPES[5:], INT32)

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
class Wide:
    """An instance of hopper_w8a16_wide.cu; inputs blocks fetch a common input tile. With `divide` the tiles of the last
    wave or two are divided along k (no compile-time number)."""

    inputs: int
    early: bool = True
    divide: bool = False


@lru_cache(maxsize=4096)
def variant(m: int, n: int, k: int, scales: int, multiprocessors: int) -> Variant | Wide:
    """The instance for a product of [m, k] with [n, k].

    scales   what a scale covers: BY_ROW, BY_BLOCK, RESCALED, BY_32
    """
    if m <= 64:
        return few_rows(m, n, k, scales, multiprocessors)
    tiles, blocks = ceil_div(n, 64), ceil_div(k, DEPTH)
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
