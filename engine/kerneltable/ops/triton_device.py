# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917 - a kernel takes its operands one by one
"""Device functions that the Triton kernels share: tile order, e4m3 from and to bits, the store, the fixed-order sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Two e4m3 codes become two bf16: each byte is moved to the upper half of its 16 bits, the exponent field is shifted in
# place (so the value is 2^-120 of the right one) and a product with 2^120 (0x7b80) restores it. Subnormals take part,
# since bf16 products keep them. -0.0 (0x8000) as addend keeps the sign of zero. SM80 has no bf16 product, only this.
_BF16_PAIR = tl.constexpr("""
{
.reg .b32 v, s, c, z;
cvt.u32.u16 v, $1;
prmt.b32 v, v, 0, 0x1404;
and.b32 s, v, 0x80008000;
and.b32 v, v, 0x7f007f00;
shr.u32 v, v, 4;
or.b32 v, v, s;
mov.b32 c, 0x7b807b80;
mov.b32 z, 0x80008000;
fma.rn.bf16x2 $0, v, c, z;
}
""")

# The same to f16: the exponent field lands 2^-8 low, 0x5c00 is 2^8.
_F16_PAIR = tl.constexpr("""
{
.reg .b32 v, s, c;
cvt.u32.u16 v, $1;
prmt.b32 v, v, 0, 0x1404;
and.b32 s, v, 0x80008000;
and.b32 v, v, 0x7f007f00;
shr.u32 v, v, 1;
or.b32 v, v, s;
mov.b32 c, 0x5c005c00;
mul.rn.f16x2 $0, v, c;
}
""")

# The same, four codes at once: shorter where a thread holds four neighbours along k (mma.sync), not two (wgmma).
_BF16_QUAD = tl.constexpr("""
{
.reg .b32 lo, hi, sl, sh, big, zero;
prmt.b32 lo, $2, 0, 0x1404;
prmt.b32 hi, $2, 0, 0x3424;
and.b32 sl, lo, 0x80008000;
and.b32 sh, hi, 0x80008000;
and.b32 lo, lo, 0x7f007f00;
and.b32 hi, hi, 0x7f007f00;
shr.u32 lo, lo, 4;
shr.u32 hi, hi, 4;
or.b32 lo, lo, sl;
or.b32 hi, hi, sh;
mov.b32 big, 0x7b807b80;
mov.b32 zero, 0x80008000;
fma.rn.bf16x2 $0, lo, big, zero;
fma.rn.bf16x2 $1, hi, big, zero;
}
""")

_F16_QUAD = tl.constexpr("""
{
.reg .b32 lo, hi, sl, sh, big;
prmt.b32 lo, $2, 0, 0x1404;
prmt.b32 hi, $2, 0, 0x3424;
and.b32 sl, lo, 0x80008000;
and.b32 sh, hi, 0x80008000;
and.b32 lo, lo, 0x7f007f00;
and.b32 hi, hi, 0x7f007f00;
shr.u32 lo, lo, 1;
shr.u32 hi, hi, 1;
or.b32 lo, lo, sl;
or.b32 hi, hi, sh;
mov.b32 big, 0x5c005c00;
mul.rn.f16x2 $0, lo, big;
mul.rn.f16x2 $1, hi, big;
}
""")


@triton.jit
def tile_of(pid, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of the tile of program pid: GROUP rows of tiles run down before the next column."""
    tiles_m = tl.cdiv(m, BM)
    tiles_n = tl.cdiv(n, BN)
    per_group = GROUP * tiles_n
    first = (pid // per_group) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inside = pid % per_group
    return first + inside % height, inside // height


@triton.jit
def steps_of(k, BK: tl.constexpr, SPLIT: tl.constexpr):
    """First step along k of this program, and the one after its last."""
    first = 0
    last = tl.cdiv(k, BK)
    if SPLIT > 1:
        each = tl.cdiv(last, SPLIT)
        first = tl.program_id(1) * each
        last = tl.minimum(first + each, last)
    return first, last


@triton.jit
def operands_at(x_rows, w_rows, depth, SWAP: tl.constexpr):
    """Pointers of the first tiles: x [BM, BK] and w [BK, BN], or x [BK, BM] and w [BN, BK] with SWAP."""
    if SWAP:
        x_at = x_rows[None, :] + depth[:, None]
        w_at = w_rows[:, None] + depth[None, :]
    else:
        x_at = x_rows[:, None] + depth[None, :]
        w_at = w_rows[None, :] + depth[:, None]
    return x_at, w_at


@triton.jit
def load_step(x_at, w_at, depth, left, SWAP: tl.constexpr, EVEN: tl.constexpr):
    """The tiles of one step; columns beyond the `left` that remain of k are 0. EVEN promises that there are none."""
    if EVEN:
        x_tile = tl.load(x_at)
        w_tile = tl.load(w_at)
    else:
        inside = depth < left
        x_tile = tl.load(x_at, mask=inside[:, None] if SWAP else inside[None, :], other=0.0)
        w_tile = tl.load(w_at, mask=inside[None, :] if SWAP else inside[:, None], other=0.0)
    return x_tile, w_tile


@triton.jit
def widen(codes, TO: tl.constexpr, HOW: tl.constexpr, NAN: tl.constexpr):
    """e4m3 codes as uint8 -> TO (f32, bf16 or f16), exactly.

    HOW "convert" lets the chip convert (SM89 on), "pairs" and "quads" shift two or four codes at once in PTX (SM80 on,
    16-bit types), "bits" is portable. With NAN false the codes 0x7f and 0xff must not occur.
    """
    if HOW == "convert":
        values = codes.to(tl.float8e4nv, bitcast=True).to(TO)
    elif HOW == "bits":
        wide = codes.to(tl.int32)
        bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
        exact = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        if NAN:
            exact = tl.where((wide & 0x7F) == 0x7F, float("nan"), exact)
        values = exact.to(TO)
    else:
        if HOW == "pairs" and tl.bfloat16 == TO:
            values = tl.inline_asm_elementwise(_BF16_PAIR, "=r,h", [codes], dtype=tl.bfloat16, is_pure=True, pack=2)
        elif HOW == "pairs":
            values = tl.inline_asm_elementwise(_F16_PAIR, "=r,h", [codes], dtype=tl.float16, is_pure=True, pack=2)
        elif tl.bfloat16 == TO:
            values = tl.inline_asm_elementwise(_BF16_QUAD, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
        else:
            values = tl.inline_asm_elementwise(_F16_QUAD, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
        if NAN:
            values = tl.where((codes & 0x7F) == 0x7F, float("nan"), values)
    return values


@triton.jit
def power_of_two(codes):
    """e8m0 codes as uint8 -> f32, exactly: 2^(code - 127), code 0 is 2^-127, code 255 is NaN."""
    wide = codes.to(tl.int32)
    bits = tl.where(wide == 0, 0x00400000, wide << 23)
    bits = tl.where(wide == 255, 0x7FC00000, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def narrow(values, CONVERT: tl.constexpr):
    """f32 within +-448, or NaN, -> e4m3 to nearest, ties to even; every NaN becomes 0x7f."""
    if CONVERT:
        result = values.to(tl.float8e4nv)
    else:
        bits = values.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
        # Below 2^-6 a code counts steps of 2^-9, which is the ulp of float32 at 16384.
        small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)
        code = tl.where(size > 0x7F800000, 0x7F, code)
        result = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return result


@triton.jit
def store_tile(acc, out, bias, rows, cols, m, n, SWAP: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr):
    """Store a tile [rows, cols] (or [cols, rows] with SWAP) to out [m, n], or its part of k to out [SPLIT, m, n]."""
    if SWAP:
        r, c = rows[None, :], cols[:, None]
    else:
        r, c = rows[:, None], cols[None, :]
    keep = (r < m) & (c < n)
    if BIAS and SPLIT == 1:
        acc += tl.load(bias + c, mask=c < n, other=0.0).to(tl.float32)
    if SPLIT > 1:
        out += tl.program_id(1).to(tl.int64) * m * n
    tl.store(out + r.to(tl.int64) * n + c, acc.to(out.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["m"])
def sum_parts_kernel(parts, bias, out, m, n, SPLIT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """out [m, n] = the sum of parts [SPLIT, m, n] f32 in ascending order, plus bias, rounded once."""
    column_tiles = tl.cdiv(n, BLOCK)
    pid = tl.program_id(0)
    row = (pid // column_tiles).to(tl.int64)
    cols = (pid % column_tiles) * BLOCK + tl.arange(0, BLOCK)
    keep = cols < n
    acc = tl.zeros((BLOCK,), tl.float32)
    size = tl.cast(m, tl.int64) * n
    for part in tl.static_range(SPLIT):
        acc += tl.load(parts + part * size + row * n + cols, mask=keep, other=0.0)
    if BIAS:
        acc += tl.load(bias + cols, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + row * n + cols, acc.to(out.dtype.element_ty), mask=keep)


def sum_parts(parts: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Add the parts of a product in a fixed order.

    parts    [s, m, n] f32, contiguous
    bias     [n] any float dtype, or None
    out      [m, n] written, rounded once
    """
    count, m, n = parts.shape
    block = 256
    grid = (m * -(-n // block),)
    sum_parts_kernel[grid](parts, bias, out, m, n, SPLIT=count, BIAS=bias is not None, BLOCK=block, num_warps=2)
