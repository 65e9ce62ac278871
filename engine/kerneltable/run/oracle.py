"""The float64 reference of a problem, and the bound that every element of a kernel's result is held to.

    |out - ref64| <= r * |ref64| + (1 + r) * (x / (1 - x) + floor) * S + t

with S = |A| @ |B|.T of the dequantized operands and x = c * K * 2^-24 of the kernel's accumulator class. r rounds the
result: the output's unit roundoff, plus 2^-24 for adding a bias in float32 before a narrower output is stored. t is the
smallest subnormal of the output, plus K of float32's, for underflow. Means and cosines would miss a wrong tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from kerneltable.formats import ACCUMULATORS, FORMATS
from kerneltable.ops.torch_dequantize import dequantize_input, dequantize_weight, quantize_input
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem

WEIGHT_KINDS = ("weight_only", "emulation")
"""Kernel kinds that leave the input at 16 bits, whatever the scheme says."""

F32_ROUNDOFF = 2.0**-24
F32_SUBNORMAL = 2.0**-149
SMALLEST_SUBNORMAL = {"f32": F32_SUBNORMAL, "bf16": 2.0**-133, "f16": 2.0**-24}
ELEMENTS_AT_ONCE = 2**25
"""Elements of one float64 operand or result handled at a time (256 MiB)."""


def quantizes_input(problem: Problem, kind: str) -> bool:
    """Whether a kernel of this kind quantizes the input of this problem."""
    return problem.input_granularity != "none" and kind not in WEIGHT_KINDS


def reference64(
    problem: Problem,
    tensors: Mapping[str, torch.Tensor | None],
    x: torch.Tensor,
    bias: torch.Tensor | None,
    quantize_input: bool,
    columns: range | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer means, in float64, and S, the sum of magnitudes that the error bound is made of.

    problem         completed, with n and k; its output dtype does not matter here
    tensors         weight [n, k] e4m3, weight_scale, and if the scheme has them input_scale and input_scale_ub
    x               [m, k] bf16, f16 or f32
    bias            [n] or None
    quantize_input  True: x is quantized as the problem says (see quantizes_input); False: taken as it is
    columns         outputs to compute, one after another; None: all n
    returns         ref64 [m, n] and S [m, n], float64, on the device of x; S does not count the bias
    """
    weight, scale = tensors["weight"], tensors["weight_scale"]
    if weight is None or scale is None:
        raise ValueError("reference64: tensors must hold weight and weight_scale")
    left = _operand(problem, tensors, x, quantize_input)
    wide = widen_scale(scale)
    asked = range(problem.n) if columns is None else columns
    ref = torch.empty(x.shape[0], len(asked), dtype=torch.float64, device=x.device)
    magnitude = torch.empty_like(ref)
    step = max(1, ELEMENTS_AT_ONCE // max(1, problem.k))
    for first in range(0, len(asked), step):
        part = slice(first, min(first + step, len(asked)))
        rows = slice(asked.start + part.start, asked.start + part.stop)
        right = dequantize_weight(problem, weight, wide, torch.float64, rows)
        ref[:, part] = left @ right.t()
        magnitude[:, part] = left.abs() @ right.abs_().t()
    if bias is not None:
        ref += bias[asked.start : asked.stop].to(torch.float64)
    return ref, magnitude


def bound(ref64: torch.Tensor, S: torch.Tensor, k: int, output: str, accumulator: str) -> torch.Tensor:
    """The largest error allowed for each element.

    ref64, S     what reference64 returned, [m, n] float64
    k            terms of each sum
    output       f32, bf16 or f16
    accumulator  a key of formats.ACCUMULATORS
    returns      [m, n] float64
    """
    rounding = FORMATS[output].roundoff
    if output != "f32":
        rounding += F32_ROUNDOFF
    kind = ACCUMULATORS[accumulator]
    grown = kind.c * k * F32_ROUNDOFF
    relative = (1 + rounding) * (grown / (1 - grown) + kind.floor)
    return rounding * ref64.abs() + relative * S + (SMALLEST_SUBNORMAL[output] + k * F32_SUBNORMAL)


def error_over_bound(
    out: torch.Tensor, ref64: torch.Tensor, S: torch.Tensor, k: int, output: str, accumulator: str
) -> float:
    """The largest error of any element in units of its bound: at most 1 means that every element is right.

    out      [m, n], the result of a kernel, in the output dtype
    returns  0 for an empty result. NaN where the reference is a number, a number where it is NaN, and an infinity that
             the output dtype does not force count as infinite errors
    """
    if tuple(out.shape) != tuple(ref64.shape):
        return math.inf
    worst = 0.0
    step = max(1, ELEMENTS_AT_ONCE // max(1, ref64.shape[1] if ref64.dim() > 1 else 1))
    for first in range(0, ref64.shape[0] if ref64.numel() else 0, step):
        rows = slice(first, first + step)
        allowed = bound(ref64[rows], S[rows], k, output, accumulator)
        worst = max(worst, float(_ratios(out[rows].to(torch.float64), ref64[rows], allowed, output).max()))
    return worst


def _operand(
    problem: Problem, tensors: Mapping[str, torch.Tensor | None], x: torch.Tensor, quantized: bool
) -> torch.Tensor:
    """The left operand in float64, after quantization if asked for."""
    if not quantized or problem.input_granularity == "none":
        return x.to(torch.float64)
    pair = quantize_input(problem, x, tensors.get("input_scale"), tensors.get("input_scale_ub"))
    return dequantize_input(problem, pair, torch.float64)


def _ratios(out: torch.Tensor, ref: torch.Tensor, allowed: torch.Tensor, output: str) -> torch.Tensor:
    """Error over bound, element by element, without NaN: what cannot be compared is 0 when right, else infinite."""
    largest = FORMATS[output].largest
    overflows = torch.isinf(out) & (out.sign() == ref.sign()) & (ref.abs() + allowed > largest)
    same = (out == ref) | (out.isnan() & ref.isnan()) | overflows
    ratio = (out - ref).abs() / allowed
    ratio = torch.where(ratio.isnan() | (allowed.isinf() & ~same), math.inf, ratio)
    return torch.where(same, 0.0, ratio)
