"""What the Hopper kernels decide and pack on the host."""

import itertools

import pytest
import torch

from kerneltable.ops import fragment_tiles, hopper_fp8_block

SHAPES = [(16, 16), (2112, 7168), (4096, 7168), (7168, 2048), (24576, 1536), (32768, 512), (8192, 28672), (576, 7168)]
ROWS = [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1024, 8192]


def fragment_order(tile: torch.Tensor) -> torch.Tensor:
    """A tile [64, 128] in the order of wgmma's fragments, written down thread by thread from the PTX manual."""
    out = []
    for quarter, warp, lane in itertools.product(range(4), range(4), range(32)):
        for instruction, half in itertools.product(range(2), range(2)):
            column = quarter * 32 + instruction * 16 + half * 8 + 2 * (lane % 4)
            row = warp * 16 + lane // 4
            out += [tile[row + 8, column], tile[row, column], tile[row + 8, column + 1], tile[row, column + 1]]
    return torch.stack(out)


def turned(code: int) -> int:
    """The sign of a code, its low four bits, and then the high three bits of its exponent."""
    bits = f"{code:08b}"
    return int(bits[0] + bits[4:8] + bits[1:4], 2)


def test_packing_is_the_order_of_the_fragments():
    codes = torch.randint(0, 256, (130, 192), dtype=torch.uint8)
    packed = fragment_tiles.pack(codes, None)
    assert packed.shape == (3, 2, 8192)
    padded = torch.zeros(192, 256, dtype=torch.uint8)
    padded[:130, :192] = torch.tensor([turned(code) for code in codes.flatten().tolist()]).view(130, 192)
    for tile, block in itertools.product(range(3), range(2)):
        wanted = fragment_order(padded[tile * 64 : tile * 64 + 64, block * 128 : block * 128 + 128])
        assert torch.equal(packed[tile, block], wanted)


def test_exponents_follow_their_tile_in_the_order_of_the_threads_rows():
    exponents = torch.randint(100, 130, (64, 4), dtype=torch.uint8)
    packed = fragment_tiles.pack(torch.zeros(64, 128, dtype=torch.uint8), exponents)
    tail = packed[0, 0, 8192:].view(4, 8, 4, 2)
    for warp, row, quarter, half in itertools.product(range(4), range(8), range(4), range(2)):
        assert tail[warp, row, quarter, half] == exponents[warp * 16 + half * 8 + row, quarter]


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", ROWS)
def test_every_part_of_k_has_work_and_every_row_a_column(m, n, k):
    blocks = -(-k // 128)
    fp8 = hopper_fp8_block.variant(m, n, k, 132)
    if isinstance(fp8, hopper_fp8_block.Stream):
        assert fp8.columns >= m
        assert 1 <= fp8.split <= min(8, blocks)
