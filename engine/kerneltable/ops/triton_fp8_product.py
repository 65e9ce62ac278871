# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""The matrix product of e4m3 codes with scales, for blocks (triton_fp8_block) and for rows (triton_fp8_rowwise).

Every FP8 dot covers 128 of k and starts from zero: the matrix unit keeps about 14 bits of a sum, so each is scaled and
added in float32. Multiplying by the input's scale there, not at the end, is what keeps the compiler from chaining dots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kerneltable.ops.triton_chip import Chip, Tile, require
from kerneltable.ops.triton_device import load_step, operands_at, steps_of, store_tile, sum_parts, tile_of


@triton.jit(do_not_specialize=["m"])
def fp8_kernel(
    x, x_scale, w, w_scale, bias, out, m, n, k, stride_x, stride_w, stride_x_scale, stride_w_scale, col_step,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    SWAP: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """out [m, n] = x [m, k] e4m3 times w [n, k] e4m3, or parts [SPLIT, m, n] f32 of it.

    BLOCK   x_scale is [m, ceil(k / 128)] and w_scale [ceil(n / 128), ceil(k / 128)], BK is 128; otherwise x_scale is
            [m] and w_scale [n], with steps of 0 where one number serves all
    """
    pid_m, pid_n = tile_of(tl.program_id(0), m, n, BM, BN, GROUP)
    rows = pid_m * BM + tl.arange(0, BM)
    cols = pid_n * BN + tl.arange(0, BN)
    # Rows beyond the edge read row 0 and are not stored: no mask in the loop.
    near = tl.where(rows < m, rows, 0).to(tl.int64)
    side = tl.where(cols < n, cols, 0).to(tl.int64)
    first, last = steps_of(k, BK, SPLIT)
    depth = tl.arange(0, BK)
    start = depth + tl.cast(first, tl.int64) * BK
    x_at, w_at = operands_at(x + near * stride_x, w + side * stride_w, start, SWAP)
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    xs_at = x_scale + near * stride_x_scale
    if BN <= 128:
        ws_at = w_scale + (pid_n * BN // 128).to(tl.int64) * stride_w_scale
    else:
        ws_at = w_scale + side // 128 * stride_w_scale
    if not BLOCK:
        row_scale = tl.load(xs_at)
    for step in range(first, last):
        a, b = load_step(x_at, w_at, depth, k - step * BK, SWAP, EVEN)
        part = tl.dot(b, a) if SWAP else tl.dot(a, b)
        if not BLOCK:
            scale = row_scale
        elif BN <= 128:
            scale = tl.load(xs_at + step) * tl.load(ws_at + step)
        else:
            scale = tl.load(xs_at + step)
            side_scale = tl.load(ws_at + step)
            part *= side_scale[:, None] if SWAP else side_scale[None, :]
        acc += part * (scale[None, :] if SWAP else scale[:, None])
        x_at += BK
        w_at += BK
    if not BLOCK:
        col_scale = tl.load(w_scale + side * col_step)
        acc *= col_scale[:, None] if SWAP else col_scale[None, :]
    store_tile(acc, out, bias, rows, cols, m, n, SWAP, SPLIT, BIAS)


def multiply(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor,
    bias: torch.Tensor | None, output: torch.dtype, tile: Tile, chip: Chip, *, block: bool,
) -> torch.Tensor:  # fmt: skip
    """Launch fp8_kernel, and the fixed-order sum when the tile splits k.

    x             [m, k] e4m3, columns contiguous
    x_scale       f32: [m, ceil(k / 128)] when block, else [m, 1] or one number
    weight        [n, k] e4m3, columns contiguous
    weight_scale  f32: [ceil(n / 128), ceil(k / 128)] when block, else [n] or one number
    returns       [m, n] of dtype output, contiguous
    """
    (m, k), n = x.shape, weight.shape[0]
    stored = torch.float32 if chip.interpreted else output  # the interpreter cuts where bf16 should be rounded
    out = torch.empty(m, n, dtype=stored, device=x.device)
    parts = out if tile.split_k == 1 else torch.empty(tile.split_k, m, n, dtype=torch.float32, device=x.device)
    grid = (-(-m // tile.block_m) * -(-n // tile.block_n), tile.split_k)
    x_step = 0 if x_scale.numel() == 1 and not block else x_scale.stride(0)
    fp8_kernel[grid](
        x, x_scale, weight, weight_scale, bias, parts, m, n, k, x.stride(0), weight.stride(0),
        x_step, weight_scale.stride(0) if block else 0, 0 if weight_scale.numel() == 1 else 1,
        BM=tile.block_m, BN=tile.block_n, BK=tile.block_k, GROUP=tile.group_m, SPLIT=tile.split_k, SWAP=tile.swap,
        BLOCK=block, EVEN=k % tile.block_k == 0, BIAS=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    if tile.split_k > 1:
        sum_parts(parts, bias, out)
    return out.to(output)


def check(op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise KernelInputError unless x [m, k] and weight [n, k] are e4m3 rows and bias is [n] or None."""
    e4m3 = torch.float8_e4m3fn
    fits = x.dim() == 2 and weight.dim() == 2 and x.shape[0] > 0 and x.shape[1] == weight.shape[1]
    fits = fits and x.dtype == weight.dtype == e4m3
    fits = fits and all(t.stride(1) == 1 or t.shape[1] == 1 for t in (x, weight))
    found = f"x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} {weight.dtype}"
    require(fits, op, "x [m, k] and weight [n, k] of e4m3, columns contiguous, m at least 1", found)
    fits = bias is None or tuple(bias.shape) == (weight.shape[0],)
    require(fits, op, f"bias [{weight.shape[0]}] or None", None if bias is None else tuple(bias.shape))
