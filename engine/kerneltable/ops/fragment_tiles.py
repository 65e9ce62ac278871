"""FP8 weights in the order in which the threads of a 16-bit product need their codes, for kernels of this layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.errors import WeightsRefused
from kerneltable.ops.torch_fp8 import has_nan_codes, widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS, DEPTH = 64, 128
TILE_BYTES = ROWS * DEPTH
EXPONENT_BYTES = TILE_BYTES // 32
BY_ROW, BY_BLOCK, BY_32 = 0, 1, 2
"""KT_SCALES: one scale a row (or for all), one a block of 128 x 128, one e8m0 for 32 columns of a row."""

RESCALED = 3
"""As BY_BLOCK, for scales with which one sum can change its unit from block to block (hopper_w8a16.rescales). Wide
tiles do so; narrower ones are faster with a second sum."""

EXACT_EXPONENTS = {"bf16": (16, 134), "f16": (112, 134)}
"""e8m0 codes between which every e4m3 value times its scale is a normal or exact number of the input's type, and the
scale times the constant that widens the code still a power of two that the type has."""

ONE = 127
"""e8m0 code of 1."""


def pack(codes: torch.Tensor, exponents: torch.Tensor | None) -> torch.Tensor:
    """The weight in the order in which a thread of the kernel needs its codes.

    codes      [n, k] uint8 holding e4m3, no NaN; k a multiple of 32 with exponents
    exponents  [n, k / 32] uint8 holding e8m0, or None
    returns    [ceil(n / 64), ceil(k / 128), 8192 (+ 256 with exponents)] uint8, contiguous; padded with zeros.
               A tile is [quarter of k, warp, lane, 16 bytes]: two instructions of 8 bytes each, in which the codes of
               rows r + 8 and r stand alternately. A code's bits are turned: its sign, its low four bits, its exponent's
               high three bits (csrc/include/widen.cuh)
    source     PTX ISA 9.0, register fragments of wgmma.mma_async.m64nNk16 and, for A, of mma.m16n8k16: the same
    """
    n, k = codes.shape
    tiles, blocks = -(-n // ROWS), -(-k // DEPTH)
    padded = torch.zeros(tiles * ROWS, blocks * DEPTH, dtype=torch.uint8, device=codes.device)
    padded[:n, :k] = (codes & 0x80) | ((codes & 0x0F) << 3) | ((codes >> 4) & 7)
    # tile, warp, row or row + 8, row, block, quarter, instruction, columns or columns + 8, pair of columns, column
    parts = padded.view(tiles, 4, 2, 8, blocks, 4, 2, 2, 4, 2)
    ordered = parts.permute(0, 4, 5, 1, 3, 8, 6, 7, 9, 2).flip(-1).reshape(tiles, blocks, TILE_BYTES)
    if exponents is None:
        return ordered.contiguous()
    ones = torch.full((tiles * ROWS, blocks * 4), 127, dtype=torch.uint8, device=codes.device)
    ones[:n, : k // 32] = exponents
    scales = ones.view(tiles, 4, 2, 8, blocks, 4).permute(0, 4, 1, 3, 5, 2).reshape(tiles, blocks, EXPONENT_BYTES)
    return torch.cat([ordered, scales], dim=-1).contiguous()


def unpack(packed: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The codes [n, k] and the exponents [n, k / 32], or None, that `pack` was given: its exact inverse."""
    tiles, blocks, size = packed.shape
    parts = packed[..., :TILE_BYTES].reshape(tiles, blocks, 4, 4, 8, 4, 2, 2, 2, 2).flip(-1)
    turned = parts.permute(0, 3, 9, 4, 1, 2, 6, 7, 5, 8).reshape(tiles * ROWS, blocks * DEPTH)[:n, :k]
    codes = (turned & 0x80) | ((turned >> 3) & 0x0F) | ((turned & 7) << 4)
    if size == TILE_BYTES:
        return codes, None
    scales = packed[..., TILE_BYTES:].reshape(tiles, blocks, 4, 8, 4, 2).permute(0, 2, 5, 3, 1, 4)
    return codes, scales.reshape(tiles * ROWS, blocks * 4)[:n, : k // 32].contiguous()


def tensors_of(packed: torch.Tensor, n: int, k: int) -> dict[str, torch.Tensor]:
    """What a packed weight stands for, by the names of the schemes, byte for byte.

    packed    as `pack` gives it
    returns   weight [n, k] uint8 holding e4m3; with packed exponents weight_scale [n, k / 32] uint8 holding e8m0, too
    """
    codes, exponents = unpack(packed, n, k)
    return {"weight": codes} if exponents is None else {"weight": codes, "weight_scale": exponents}


def codes_of(kernel: str, weight: torch.Tensor) -> torch.Tensor:
    """The bytes of a weight [n, k] e4m3.

    errors    WeightsRefused if it holds NaN codes
    """
    codes = weight.view(torch.uint8)
    if has_nan_codes(codes):
        raise WeightsRefused(f"{kernel}: the weight holds NaN codes, which widening by bit shifts would lose")
    return codes


def scales_of(
    kernel: str, problem: Problem, codes: torch.Tensor, scale: torch.Tensor
) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
    """What a scale covers (KT_SCALES), the f32 scales, and the e8m0 exponents that are packed with the weight.

    codes     [n, k] uint8 holding e4m3
    scale     f32, bf16, e8m0 or uint8 holding e8m0: [n] or [n, 1], [] or [1], [ceil(n / 128), ceil(k / 128)], or e8m0
              [n, k / 32]
    returns   f32 [n] or [ceil(n / 128), ceil(k / 128)], contiguous, and None; or None and uint8 [n, k / 32], where
              groups of zeros, whose scale says nothing, have 1
    errors    WeightsRefused for e8m0 scales whose product with a code is not exact in the input's type
    """
    if problem.scheme == "mxfp8":
        exponents = scale.view(torch.uint8)
        low, high = EXACT_EXPONENTS[problem.input]
        if bool(((exponents < low) | (exponents > high)).any()):
            exponents = _with_ones(codes, exponents)
        if bool(((exponents < low) | (exponents > high)).any()):
            found = f"{int(exponents.min())} to {int(exponents.max())}"
            raise WeightsRefused(
                f"{kernel}: e8m0 codes must lie in {low} to {high} to be exact in {problem.input}; found {found}"
            )
        return BY_32, None, exponents
    wide = widen_scale(scale)
    if problem.weight_granularity == "block":
        return BY_BLOCK, wide.contiguous(), None
    return BY_ROW, wide.reshape(-1).expand(problem.n).contiguous(), None


def _with_ones(codes: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """The e8m0 exponents, with that of 1 for groups of zeros; NaN stays."""
    zeros = (codes & 0x7F).reshape(*exponents.shape, 32).amax(-1) == 0
    return torch.where(zeros & (exponents != 0xFF), exponents.new_tensor(ONE), exponents)
