"""Numeric facts of formats, dtypes and accumulators, each with its source. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format: its torch dtype name, largest finite value and unit roundoff (0 for a scale-only format)."""

    name: str
    torch_dtype: str
    bits: int
    largest: float
    roundoff: float
    source: str


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", "float32", 32, 3.4028234663852886e38, 2.0**-24, "IEEE 754-2019"),
        Format("bf16", "bfloat16", 16, 3.3895313892515355e38, 2.0**-8, "bfloat16: 8 significand bits"),
        Format("f16", "float16", 16, 65504.0, 2.0**-11, "IEEE 754-2019"),
        Format("e4m3", "float8_e4m3fn", 8, 448.0, 2.0**-4, "OCP 8-bit floating point r1.0"),
        Format("e4m3fnuz", "float8_e4m3fnuz", 8, 240.0, 2.0**-4, "AMD CDNA3 ISA; 256 codes, 0x80 is NaN"),
        Format("e8m0", "float8_e8m0fnu", 8, 2.0**127, 0.0, "OCP microscaling formats v1.0: 2^(code-127), 0xff is NaN"),
    )
}


@dataclass(frozen=True, slots=True)
class Accumulator:
    """How far a sum may be off: |error| <= (x / (1 - x) + floor) * S with x = c * K * 2^-24, S the sum of |a| * |b|.

    c       units of 2^-24 lost per term of the sum
    floor   part that does not grow with K; 2^-22 covers the rounding of two operands and of two scalings
    source  the derivation. "Cut" is truncation, not rounding, after aligning addends to the largest of them
    """

    name: str
    c: float
    floor: float
    source: str


ACCUMULATORS: dict[str, Accumulator] = {
    a.name: a
    for a in (
        Accumulator(
            "f32",
            1.0,
            2.0**-22,
            "float32, round to nearest, any order: K products and K - 1 additions lose half an ulp (2^-24) each, fused "
            "or not, along any path at most K of them (Jeannerod and Rump 2013)",
        ),
        Accumulator(
            "mma_f32",
            2.0,
            2.0**-22,
            "16-bit operands, float32 accumulators. SM80 cuts 8 products and the sum at 2^-24 of the largest, then the "
            "result at 2^-23: 11 units for 8 terms; SM90 cuts 17 addends at 2^-25: 10.5 units for 16; FP8 and MX on "
            "SM100 33 at 2^-25: 18.5 for 32; AMD rounds. All below 2 a term (MMA-Sim, arXiv 2511.10909)",
        ),
        Accumulator(
            "fp8_promoted",
            1.0,
            2.0**-9,
            "FP8 on SM89 and SM90: 32 products and the sum are cut at 2^-13 of the largest of them, 4 times before the "
            "sum is promoted to float32 (arXiv 2511.10909), where 1 unit a term is ample. Products have few bits: "
            "those under 2^-6 of the largest lose something, about 0.7 of 32, a third of a cut each. For data of one "
            "sign the largest is the sum, S/4 to S in 4 steps: 16 cuts, 2^-9. Random signs lose a tenth of that; "
            "data made for it could lose 136 cuts",
        ),
        Accumulator(
            "scaled_16",
            2.0,
            2.0**-7 + 2.0**-14,
            "as mma_f32, but scales are rounded to bf16, and weights again when they are scaled: two roundings of 2^-8 "
            "for a product, (1 + 2^-8)^2 - 1; f16 loses less (Marlin and humming). What it cannot see, a lost tail of "
            "a long k, integer-exact data shows",
        ),
    )
}
