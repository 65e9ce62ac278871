"""What the script that runs under compute-sanitizer runs: small products with tails, and inputs to quantize.

Each kernel meets the instances that it chooses itself and, by its second stage, others that it would choose for sizes
that are too large here: one of each kind that some product asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain, product
from typing import Any

import torch

from kerneltable.model import Problem, Table
from kerneltable.ops import cuda_instances, hopper_fp8_choice, hopper_w8a16_variants, marlin_w8a16, mma_fp8_block
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_quantize import BLOCK, MX_BLOCK, GroupQuantizer
from kerneltable.ops.cuda_quantize_rows import TensorQuantizer, TokenQuantizer
from kerneltable.ops.cuda_vectors import Place
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK
from kerneltable.ops.hopper_fp8_choice import INPUT, NOTHING, WEIGHT, Parted, Tiled
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.select import complete

N = 400
K, LONG_K = 1040, 4112
"""Multiples of 16 alone; the long one is long enough to be split, and for its tiles to be divided."""

WIDENED_K, LONG_WIDENED_K = 1056, 4128
"""Multiples of 32 alone, for kernels that pack the weight."""

BLOCK_ROWS = ("hopper_fp8_block", "hopper_fp8_block_fixed", "mma_fp8_block")
SCALED_ROWS = ("hopper_fp8_rowwise",)
WIDENED_ROWS = ("hopper_w8a16", "marlin_w8a16")
KERNELS = (*BLOCK_ROWS, *SCALED_ROWS, *WIDENED_ROWS)
"""The rows of the table whose products are of csrc/cuda. The others that launch from it quantize inputs with it."""

TILES = tuple(
    hopper_fp8_choice.tiled(columns, common, divide, apart)
    for columns in hopper_fp8_choice.TILES
    for common in (WEIGHT, INPUT, NOTHING)
    for divide in (False, True)
    for apart in ((False, True) if columns == 256 else (False,))
)
"""Of hopper_tiled.cuh: all widths, whatever a team shares, and both ways to store, whether a product asks for them
today or not."""

NOT_A_KIND = ("split", "stages", "together", "group")


@dataclass(frozen=True, slots=True)
class Forced:
    """A call of a kernel's second stage: `choice` is what follows its input and the bias."""

    kernel: str
    m: int
    choice: tuple[Any, ...]


WIDE = tuple(
    Forced("hopper_w8a16", 300, (hopper_w8a16_variants.Wide(inputs, divide=divide),))
    for inputs, divide in product((1, 2), (False, True))
)
"""The instances of hopper_w8a16_wide.cu, which no product of this size asks for, with whole tiles and divided ones."""


@dataclass(frozen=True, slots=True)
class Case:
    """A layer and what it is run at.

    problem   completed; m is not known
    rows      at which each kernel runs as it chooses itself
    wild      some of the weight's scales are 0 or as small as 2^-120
    """

    problem: Problem
    rows: tuple[int, ...]
    kernels: tuple[str, ...]
    forced: tuple[Forced, ...] = ()
    wild: bool = False

    @property
    def most_rows(self) -> int:
        return max((*self.rows, *(one.m for one in self.forced)))


def cases(table: Table, chip: CudaChip) -> Iterator[Case]:
    """Every layer; the kernels need not fit the chip."""

    def problem(scheme: str, k: int, **details: Any) -> Problem:
        return complete(table.schemes[scheme], Problem(scheme, n=N, k=k, **details))

    def block(k: int, dtype: str, **details: Any) -> Problem:
        return problem("fp8_block_w8a8", k, input=dtype, output=dtype, **details)

    def scaled(k: int, granularity: str, **details: Any) -> Problem:
        return problem("fp8_w8a8", k, weight_granularity=granularity, **details)

    def widened(k: int, granularity: str, **details: Any) -> Problem:
        if granularity == "mxfp8":
            return problem("mxfp8", k, **details)
        return problem("w8a16_fp8", k, weight_granularity=granularity, **details)

    rows, some = (1, 8, 17, 40, 70, 100, 200, 300), (1, 17, 70, 200)
    tiles = tuple(Forced("hopper_fp8_block", 300, (tile,)) for tile in TILES[::5])
    yield Case(block(K, "bf16", bias=True), rows, BLOCK_ROWS, tiles)
    yield Case(block(K, "f16"), some, BLOCK_ROWS, tiles)
    yield Case(block(K, "f32", bias=True), some, BLOCK_ROWS, tiles)
    yield Case(block(K, "bf16", weight_scale="e8m0"), some[:1], BLOCK_ROWS)
    yield Case(block(LONG_K, "bf16"), (1, 8, 17, 100, 200), BLOCK_ROWS, tuple(_forced_blocks(chip)))
    rows, tiles = (1, 8, 17, 40, 70, 200, 300), tuple(Forced("hopper_fp8_rowwise", 300, (tile,)) for tile in TILES[::4])
    yield Case(scaled(K, "channel", input_granularity="token", bias=True), rows, SCALED_ROWS, tiles)
    yield Case(scaled(LONG_K, "channel", input_granularity="token", input="f16", output="f16"), rows, SCALED_ROWS)
    yield Case(scaled(LONG_K, "tensor", input_scaling="static", output="f32", bias=True), rows, SCALED_ROWS, tiles)
    yield Case(scaled(LONG_K, "tensor", input_granularity="tensor", input="f32"), rows, SCALED_ROWS)
    rows = (1, 17, 70, 200, 300)
    yield Case(widened(WIDENED_K, "channel", bias=True), rows, WIDENED_ROWS, WIDE)
    yield Case(widened(WIDENED_K, "tensor", input="f16", output="f16"), rows, WIDENED_ROWS)
    yield Case(widened(WIDENED_K, "block", output="f32", bias=True), rows, WIDENED_ROWS)
    yield Case(widened(WIDENED_K, "block", input="f16", output="f16"), some, WIDENED_ROWS)
    yield Case(widened(WIDENED_K, "block", input="f16", output="f16"), some, WIDENED_ROWS, WIDE, wild=True)
    yield Case(widened(WIDENED_K, "block"), rows, WIDENED_ROWS, WIDE, wild=True)
    yield Case(widened(WIDENED_K, "mxfp8", input="f16", output="f16", bias=True), rows, WIDENED_ROWS, WIDE)
    yield Case(widened(LONG_WIDENED_K, "channel"), some, WIDENED_ROWS)
    forced = tuple(_forced_widened(chip, BY_BLOCK))
    yield Case(widened(LONG_WIDENED_K, "block", bias=True), some, WIDENED_ROWS, forced)
    yield Case(widened(LONG_WIDENED_K, "mxfp8"), some, WIDENED_ROWS, tuple(_forced_widened(chip, BY_32)))


def _forced_blocks(chip: CudaChip) -> Iterator[Forced]:
    """Instances of the rows with quantized inputs; the flags of the Hopper kernel are those of `quantize`."""
    asked = {hopper_fp8_choice.variant.__wrapped__(*one) for one in cuda_instances.usual(chip.multiprocessors)[::7]}
    for choice in dict.fromkeys((*one_of_each_kind(asked), *TILES)):
        yield Forced(
            "hopper_fp8_block", 200 if isinstance(choice, Tiled | Parted) else _tail_of(choice.columns), (choice,)
        )
    for tile in (*chain.from_iterable(mma_fp8_block.PAIRED.values()), mma_fp8_block.LARGE):
        yield from (Forced("mma_fp8_block", _tail_of(tile.rows), (tile, parts)) for parts in (1, 3))


def _forced_widened(chip: CudaChip, scales: int) -> Iterator[Forced]:
    """Instances of the rows with inputs of 16 bits, for what a scale covers."""
    products = cuda_instances.usual(chip.multiprocessors)[::7]
    variant = hopper_w8a16_variants.variant.__wrapped__
    for choice in one_of_each_kind({variant(*one[:3], scales, one.multiprocessors) for one in products}):
        if isinstance(choice, Variant):
            yield Forced("hopper_w8a16", _tail_of(choice.columns), (choice,))
    yield from WIDE
    own = chain.from_iterable(marlin_w8a16.VARIANTS.values())
    for tile in (*own, marlin_w8a16.PAIRED, marlin_w8a16.WIDE):
        yield from (Forced("marlin_w8a16", _tail_of(tile.columns), ((tile, parts),)) for parts in (1, 3))


def one_of_each_kind(choices: Iterable[Any]) -> list[Any]:
    """Of choices that differ in NOT_A_KIND alone, those with the smallest and with the largest split."""
    kinds: dict[object, list[Any]] = {}
    for choice in sorted(choices, key=repr):
        names = [field.name for field in fields(choice) if field.name not in NOT_A_KIND]
        kinds.setdefault((type(choice), *(getattr(choice, name) for name in names)), []).append(choice)
    found: dict[Any, None] = {}
    for alike in kinds.values():
        alike.sort(key=lambda one: getattr(one, "split", 0))
        found |= dict.fromkeys((alike[0], alike[-1]))
    return list(found)


def _tail_of(columns: int) -> int:
    """Rows that do not fill a tile."""
    return columns - 3


# --- Input quantizers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quantizing:
    """An input quantizer and the rows [m, k] that it is given, contiguous and not.

    problem    completed: what the results mean
    make       from a place, the scale (static scaling) and the largest scale to the quantizer
    by_column  results are filled up to a multiple of four rows
    busy       as on a chip with one multiprocessor, which is busy enough for threads that load ahead
    capped     there is a largest scale
    """

    problem: Problem
    make: Callable[[Place, torch.Tensor | None, torch.Tensor | None], Any]
    rows: tuple[int, ...]
    busy: bool
    by_column: bool = False
    capped: bool = False

    def __str__(self) -> str:
        problem = self.problem
        kind = f"{problem.input_scaling} {problem.input_granularity}"
        kind += f" of {problem.weight_block[1]}" if kind.endswith("block") and problem.weight_block else ""
        more = [word for word, said in (("by column", self.by_column), ("capped", self.capped)) if said]
        return ", ".join(["quantizer", kind, *more, f"k={problem.k} {problem.input}", "busy" if self.busy else "idle"])

    def place(self, chip: CudaChip, device: torch.device) -> Place:
        """Where it runs, and what it reads."""
        dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        chip = replace(chip, multiprocessors=1) if self.busy else chip
        return Place(self.problem.k, dtypes[self.problem.input], chip, device)


WIDTHS = (("bf16", 1040), ("f16", 1036), ("f32", 1040), ("bf16", 1037))
"""Inputs whose rows are read 8, 4, 4 numbers and 1 at a time."""

HELD_BACK = 5001
"""Numbers of a row, read one at a time, of which a block's registers hold 4096."""


def quantizings(table: Table) -> Iterator[Quantizing]:
    """Every granularity, scaling and way of reading."""

    def problem(scheme: str, k: int, dtype: str, **details: Any) -> Problem:
        return complete(table.schemes[scheme], Problem(scheme, n=16, k=k, input=dtype, **details))

    def rows_of(dtype: str, k: int, granularity: str, scaling: str = "dynamic") -> Problem:
        return problem("fp8_w8a8", k, dtype, input_granularity=granularity, input_scaling=scaling)

    def grouped(group: int, by_column: bool) -> Callable[..., Any]:
        return lambda place, scale, upper: GroupQuantizer(place, group, by_column=by_column)

    rows = (3, 200)
    for busy in (False, True):
        for index, (dtype, k) in enumerate(WIDTHS):
            capped = (index + busy) % 2 == 1
            in_blocks = problem("fp8_block_w8a8", k, dtype)
            yield Quantizing(in_blocks, grouped(BLOCK, capped), rows, busy, by_column=capped)
            for_token, for_all = rows_of(dtype, k, "token"), rows_of(dtype, k, "tensor")
            yield Quantizing(for_token, lambda place, _, upper: TokenQuantizer(place, upper), rows, busy, capped=capped)
            yield Quantizing(for_all, TensorQuantizer, rows, busy, capped=capped)
            yield Quantizing(rows_of(dtype, k, "tensor", "static"), TensorQuantizer, rows, busy)
        for dtype in ("bf16", "f16", "f32"):
            yield Quantizing(problem("mxfp8", 1056, dtype), grouped(MX_BLOCK, False), rows, busy)
    long = rows_of("bf16", HELD_BACK, "token")
    yield Quantizing(long, lambda place, _, upper: TokenQuantizer(place, upper), rows[:1], False)
