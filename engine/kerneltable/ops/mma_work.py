"""How much work a product with mma.sync is: by this mma_fp8_block and marlin_w8a16 choose their tiles and parts of k.

The unit is a byte that a multiprocessor fetches from the second-level cache, of which an H200 fetches 118 in a
nanosecond. The constants were fitted to times of both kernels there (27 products, 2026-11-21): for the tiles chosen
they give the measured time within a fifth, and in 45 of 51 cases a tile within 5 % of the fastest (six choices have no
time yet). On other chips nothing was measured; the ratios differ, but memory is slower than the cache there too.
"""

from __future__ import annotations

from dataclasses import dataclass

from kerneltable.ops.cuda_code import Product
from kerneltable.ops.hopper import ceil_div

MEMORY = 3.64
"""Of a byte from memory, which all multiprocessors share: 4.28 TB/s."""

ROUND = 40_000
"""Until the first copies have arrived, and from the last one to the results."""

ADDING, PART = 120_000, 45
"""The launch that adds parts of k; a sum that is written and read back."""

ALONE = 1.4
"""What a block takes that leaves a multiprocessor waiting, when it has it for itself."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an instance divides a product.

    blocks    of threads, that cover the outputs
    step      work of a block for one column of k
    together  blocks that share a multiprocessor
    waits     whether one block by itself leaves the multiprocessor waiting
    """

    blocks: int
    step: float
    together: int
    waits: bool


def work(tiling: Tiling, parts: int, product: Product) -> float:
    """What the busiest multiprocessor does for a product whose k is split into so many parts."""
    m, n, k, multiprocessors = product
    blocks = tiling.blocks * parts
    busiest, rounds = ceil_div(blocks, multiprocessors), ceil_div(blocks, multiprocessors * tiling.together)
    own = max(busiest * k / parts * tiling.step, MEMORY * n * k / multiprocessors)
    waiting = ALONE if busiest == 1 and tiling.waits else 1
    return own * waiting + ROUND * rounds + (ADDING + PART * parts * m * n / multiprocessors if parts > 1 else 0)


def fitting(shared_bytes: int, chip_bytes: int) -> int:
    """Blocks with so much shared memory that fit into a multiprocessor together; chip_bytes: what one block may use.

    source   CUDA programming guide, compute capabilities: 1 KiB of each block is the system's, so a multiprocessor
             has 1 KiB more than a block may use
    """
    return (chip_bytes + 1024) // (shared_bytes + 1024)
