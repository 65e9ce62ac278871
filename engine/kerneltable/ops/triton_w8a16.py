# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""W8A16: e4m3 weights widened to the input's type in registers. Needs no FP8 instruction, so SM80 runs it."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from kerneltable.ops.triton_chip import Bands, Chip, Strip, Tile, require, widened
from kerneltable.ops.triton_device import load_step, operands_at, steps_of, store_tile, sum_parts, tile_of, widen
from kerneltable.ops.triton_gemv import multiply_row

BLOCK = 128
DOT_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}

# Measured on an H200 (132 multiprocessors, 227 KiB) on 2026-11-21 over four shapes of DeepSeek-V3 and Llama-3-70B.
# Swapped: the widened weight is then the operand that the matrix unit of SM90 reads from registers.
BANDS: Bands = (
    (16, Tile(block_m=16, block_n=64, block_k=128, warps=4, stages=5)),
    (32, Tile(block_m=32, block_n=64, block_k=128, warps=4, stages=5)),
    (64, Tile(block_m=64, block_n=64, block_k=128, warps=4, stages=5, swap=True)),
    (256, Tile(block_m=128, block_n=64, block_k=128, warps=4, stages=3, swap=True)),
    (None, Tile(block_m=128, block_n=128, block_k=128, warps=8, stages=3, swap=True)),
)


@triton.jit(do_not_specialize=["m"])
def w8a16_kernel(
    x, w, w_scale, bias, out, m, n, k, stride_x, stride_w, stride_scale, col_step,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    SWAP: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    DOT: tl.constexpr, HOW: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """out [m, n] = x [m, k] times w [n, k] uint8 holding e4m3, or parts [SPLIT, m, n] f32 of it.

    BLOCK   w_scale is f32 [ceil(n / 128), ceil(k / 128)] and BK divides 128; otherwise [n], or one number (col_step 0)
    """
    pid_m, pid_n = tile_of(tl.program_id(0), m, n, BM, BN, GROUP)
    rows = pid_m * BM + tl.arange(0, BM)
    cols = pid_n * BN + tl.arange(0, BN)
    near = tl.where(rows < m, rows, 0).to(tl.int64)
    side = tl.where(cols < n, cols, 0).to(tl.int64)
    first, last = steps_of(k, BK, SPLIT)
    depth = tl.arange(0, BK)
    start = depth + tl.cast(first, tl.int64) * BK
    x_at, w_at = operands_at(x + near * stride_x, w + side * stride_w, start, SWAP)
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    if BN <= 128:
        scale_at = w_scale + (pid_n * BN // 128).to(tl.int64) * stride_scale
    else:
        scale_at = w_scale + side // 128 * stride_scale
    for step in range(first, last):
        a, codes = load_step(x_at, w_at, depth, k - step * BK, SWAP, EVEN)
        a = a.to(DOT)
        b = widen(codes, DOT, HOW, NAN)
        if BLOCK:
            part = tl.dot(b, a, input_precision="ieee") if SWAP else tl.dot(a, b, input_precision="ieee")
            scale = tl.load(scale_at + step * BK // 128)
            if BN <= 128:
                acc += part * scale
            else:
                acc += part * (scale[:, None] if SWAP else scale[None, :])
        elif SWAP:
            acc = tl.dot(b, a, acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
        x_at += BK
        w_at += BK
    if not BLOCK:
        col_scale = tl.load(w_scale + side * col_step)
        acc *= col_scale[:, None] if SWAP else col_scale[None, :]
    store_tile(acc, out, bias, rows, cols, m, n, SWAP, SPLIT, BIAS)


@lru_cache(maxsize=4096)
def tiles(
    m: int, n: int, k: int, multiprocessors: int, shared_memory_kib: int, input_bytes: int = 2, wgmma: bool = True
) -> Tile | Strip:
    """The work of one program for this size of product; input_bytes is the size of one element of x."""
    return widened(BANDS, (m, n, k), multiprocessors, shared_memory_kib, input_bytes, wgmma)


def candidates(m: int, n: int, k: int) -> tuple[Tile | Strip, ...]:
    """Tiles worth timing for this size and 16-bit inputs: 8 to 12 of them."""
    if m == 1:
        shapes = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 4), (4, 4096, 8), (8, 1024, 4), (8, 2048, 8), (16, 512, 4))
        return (*(Strip(*s) for s in shapes), Tile(16, 64, 128, 4, 5, swap=True), Tile(16, 32, 128, 4, 5))
    bm = 16 if m <= 16 else 32 if m <= 32 else 64
    if m <= 64:
        return (
            Tile(bm, 64, 128, 4, 5, swap=True), Tile(bm, 64, 128, 4, 4, split_k=2, swap=True),
            Tile(bm, 64, 128, 4, 4, split_k=4, swap=True), Tile(bm, 128, 128, 8, 4, split_k=2, swap=True),
            Tile(bm, 128, 128, 8, 4, split_k=4, swap=True), Tile(bm, 128, 64, 4, 4, split_k=4, swap=True),
            Tile(bm, 32, 128, 4, 6), Tile(bm, 64, 128, 4, 5), Tile(bm, 64, 128, 4, 4, split_k=2),
            Tile(bm, 64, 128, 4, 4, split_k=4), Tile(bm, 32, 128, 4, 4, split_k=2),
        )  # fmt: skip
    return (
        Tile(64, 64, 128, 4, 4, swap=True), Tile(128, 64, 64, 4, 4, swap=True), Tile(64, 128, 64, 4, 4, swap=True),
        Tile(128, 128, 64, 8, 4, swap=True), Tile(128, 128, 64, 4, 4, swap=True), Tile(128, 128, 128, 8, 3, swap=True),
        Tile(256, 128, 64, 8, 4, swap=True), Tile(256, 64, 64, 4, 4, swap=True), Tile(256, 128, 32, 8, 4, swap=True),
        Tile(128, 256, 64, 8, 4, swap=True), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 8, 4, group_m=32, swap=True),
    )  # fmt: skip


def how_to_widen(chip: Chip, dtype: torch.dtype, swap: bool) -> str:
    """The way of `widen` for inputs of dtype: on SM89 and up f16 and f32 come from the chip's own conversion."""
    if chip.fp8_convert and dtype != torch.bfloat16:
        return "convert"
    if not chip.ptx or dtype == torch.float32:
        return "bits"
    return "pairs" if swap and chip.wgmma else "quads"


def product(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None,
    output: torch.dtype, chip: Chip, tile: Tile | Strip | None = None, *,
    nan_codes: bool = True, how: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times widened weight transposed, scaled, plus bias, rounded once.

    x             [m, k] bf16, f16 or f32, columns contiguous, m at least 1
    weight        [n, k] uint8 holding e4m3, columns contiguous
    weight_scale  f32, contiguous: [ceil(n / 128), ceil(k / 128)], or [n], or one number shaped [1]
    bias          [n] any float dtype, or None
    tile          None lets `tiles` choose
    nan_codes     False promises that the weight holds no NaN (0x7f, 0xff)
    how           "pairs", "quads", "convert" or "bits"; None lets the chip decide
    returns       [m, n] of dtype output, contiguous
    errors        KernelInputError if a tensor does not fit
    """
    check(x, weight, bias)
    (m, k), n = x.shape, weight.shape[0]
    block = weight_scale.dim() == 2
    fits = (
        weight_scale.numel() in (1, n) if not block else tuple(weight_scale.shape) == (-(-n // BLOCK), -(-k // BLOCK))
    )
    fits = fits and weight_scale.dtype == torch.float32 and weight_scale.is_contiguous()
    wanted = f"f32 scales [{-(-n // BLOCK)}, {-(-k // BLOCK)}], [{n}] or [1]"
    require(fits, "triton_w8a16", wanted, f"{tuple(weight_scale.shape)} {weight_scale.dtype}")
    tile = tile or tiles(m, n, k, chip.multiprocessors, chip.shared_memory_kib, x.element_size(), chip.wgmma)
    stored = torch.float32 if chip.interpreted else output  # the interpreter cuts where bf16 should be rounded
    out = torch.empty(m, n, dtype=stored, device=x.device)
    if isinstance(tile, Strip):
        multiply_row(
            x, None, weight, weight_scale, bias, out, tile, chip,
            group=BLOCK, input="plain", scales="block" if block else "channel", nan_codes=nan_codes,
        )  # fmt: skip
        return out.to(output)
    parts = out if tile.split_k == 1 else torch.empty(tile.split_k, m, n, dtype=torch.float32, device=x.device)
    # The interpreter cannot multiply bf16; float32 holds every bf16 and e4m3 number.
    dot = torch.float32 if chip.interpreted else x.dtype
    w8a16_kernel[(-(-m // tile.block_m) * -(-n // tile.block_n), tile.split_k)](
        x, weight, weight_scale, bias, parts, m, n, k, x.stride(0), weight.stride(0),
        weight_scale.stride(0) if block else 0, 0 if weight_scale.numel() == 1 else 1,
        BM=tile.block_m, BN=tile.block_n, BK=tile.block_k, GROUP=tile.group_m, SPLIT=tile.split_k, SWAP=tile.swap,
        BLOCK=block, EVEN=k % tile.block_k == 0, BIAS=bias is not None, DOT=DOT_TYPES[dot],
        HOW=how or how_to_widen(chip, dot, tile.swap), NAN=nan_codes, num_warps=tile.warps, num_stages=tile.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    if tile.split_k > 1:
        sum_parts(parts, bias, out)
    return out.to(output)


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise KernelInputError unless x [m, k] floats and weight [n, k] uint8 have contiguous columns and bias is [n]."""
    fits = x.dim() == 2 and weight.dim() == 2 and x.shape[0] > 0 and x.shape[1] == weight.shape[1]
    fits = fits and x.dtype in DOT_TYPES and weight.dtype == torch.uint8
    fits = fits and all(t.stride(1) == 1 or t.shape[1] == 1 for t in (x, weight))
    found = f"x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} {weight.dtype}"
    require(fits, "triton_w8a16", "x [m, k] bf16, f16 or f32, weight [n, k] uint8, columns contiguous", found)
    fits = bias is None or tuple(bias.shape) == (weight.shape[0],)
    require(fits, "triton_w8a16", f"bias [{weight.shape[0]}] or None", None if bias is None else tuple(bias.shape))


def has_nan(codes: torch.Tensor) -> bool:
    """Whether e4m3 codes (uint8, [n, k]) hold 0x7f or 0xff; waits for the device, looks at 64 MiB at a time."""
    step = max(1, 2**26 // max(1, codes.shape[1]))
    parts = codes.split(step)
    return any(bool(((part & 0x7F) == 0x7F).any()) for part in parts)
