"""What the codes and scales of a problem stand for, as plain numbers: weights by rows, and the quantized input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_fp8 import (
    quantize_block,
    quantize_static,
    quantize_tensor,
    quantize_token,
    widen_scale,
)
from kerneltable.ops.torch_mx import quantize_mx

if TYPE_CHECKING:
    from kerneltable.model import Problem

Quantized = tuple[torch.Tensor, torch.Tensor]


def dequantize_weight(
    problem: Problem, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rows: slice = slice(None)
) -> torch.Tensor:
    """Rows of the weight as numbers of dtype: codes times scales, one rounding.

    weight   [n, k] e4m3
    scale    float32 (see widen_scale), shaped as the problem's weight granularity says
    rows     which rows; all of them if not given
    returns  [rows, k] dtype
    """
    codes = weight[rows].to(torch.float32).to(dtype)
    return codes * expand_weight_scale(problem, scale, rows).to(dtype)


def expand_weight_scale(problem: Problem, scale: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
    """The scale of every weight element of these rows, shaped to broadcast against [rows, k].

    scale    [] or [1] (tensor), [n] or [n, 1] (channel), [ceil(n / bn), ceil(k / bk)] (block)
    returns  [] or [rows, 1] or [rows, k], dtype of scale
    errors   KernelInputError if the shape is none of these
    """
    granularity, block = problem.weight_granularity, problem.weight_block
    if granularity == "tensor" and scale.numel() == 1:
        return scale.reshape(())
    if granularity == "channel" and scale.numel() == problem.n:
        return scale.reshape(problem.n, 1)[rows]
    if granularity == "block" and block is not None:
        bn, bk = block
        if tuple(scale.shape) == (-(-problem.n // bn), -(-problem.k // bk)):
            lines = torch.arange(problem.n, device=scale.device)[rows] // bn
            return scale.index_select(0, lines).repeat_interleave(bk, dim=1)[:, : problem.k]
    raise KernelInputError(
        f"weight_scale: must fit granularity {granularity} (block {block}) of a [{problem.n}, {problem.k}] weight; "
        f"found shape {list(scale.shape)}"
    )


def quantize_input(
    problem: Problem, x: torch.Tensor, scale: torch.Tensor | None, upper: torch.Tensor | None
) -> Quantized:
    """x quantized as the problem says.

    x        [m, k] bf16, f16 or f32
    scale    the static input scale, [] or [1]; unused when scaling is dynamic
    upper    the largest dynamic scale, [] or [1], or None
    returns  codes [m, k] e4m3 and scales: [m, groups], [m, 1] or [] f32, or [m, groups] uint8 holding e8m0 (mxfp8)
    errors   KernelInputError if scaling is static and scale is None, or the scheme leaves inputs alone
    """
    granularity = problem.input_granularity
    if granularity == "block":
        return quantize_mx(x) if problem.scheme == "mxfp8" else quantize_block(x, _group(problem))
    if problem.input_scaling == "static":
        if scale is None:
            raise KernelInputError("input_scale: static scaling needs it; found none; give it, or declare dynamic")
        return quantize_static(x, scale)
    if granularity == "token":
        return quantize_token(x, upper)
    if granularity == "tensor":
        return quantize_tensor(x, upper)
    raise KernelInputError(f"input_granularity: must be block, token or tensor to quantize; found {granularity!r}")


def dequantize_input(problem: Problem, quantized: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """The numbers that quantize_input's codes and scales stand for, [m, k] dtype, one rounding."""
    codes, scales = quantized
    wide = widen_scale(scales)
    if problem.input_granularity == "block":
        wide = wide.repeat_interleave(_group(problem), dim=1)[:, : problem.k]
    return codes.to(torch.float32).to(dtype) * wide.to(dtype)


def _group(problem: Problem) -> int:
    """Columns of one input scale: as many as one weight scale covers."""
    if problem.weight_block is None:
        raise KernelInputError(f"problem: block inputs need weight_block; found none in scheme '{problem.scheme}'")
    return problem.weight_block[1]
