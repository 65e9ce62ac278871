"""cpu_fp8: every scheme on any CPU; weights stay FP8 in memory and are widened tile by tile in the cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelInputError
from kerneltable.formats import FORMATS
from kerneltable.ops import cpu_fp8
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer. The weight is the checkpoint's own tensor; only scales are copied."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
        path: str = "auto",
    ) -> None:
        """Load the compiled code and keep the layer.

        weight         [n, k] e4m3
        weight_scale   f32, bf16, e8m0 or uint8 holding e8m0; [] or [1], [n] or [n, 1], or one a block
        input_scale    [] or [1], needed when the problem's input scaling is static
        input_scale_ub [] or [1] f32, the largest dynamic scale of a token or tensor
        path           the instruction path; cpu_fp8_amx takes another one
        errors         KernelUnavailable without a C++ compiler or a compiled binary; KernelInputError for other shapes
        """
        quantization = _quantization(problem, input_scale, input_scale_ub)
        self._product = cpu_fp8.Product(_weight(problem, weight, weight_scale), quantization, path=path)
        self._n = problem.n
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        out = torch.empty(x.shape[0], self._n, dtype=self._output)
        return self._product(x, None if bias is None else bias.to(torch.float32).contiguous(), out)


def _weight(problem: Problem, weight: torch.Tensor, scale: torch.Tensor) -> cpu_fp8.Weight:
    """The scale as a matrix over blocks: a tensor is one block, an output channel a block of one row."""
    n, k = max(1, problem.n), max(1, problem.k)
    granularity = problem.weight_granularity
    blocks = {"tensor": (n, k), "channel": (1, k), "block": problem.weight_block}
    block = blocks.get(granularity or "")
    if block is None:
        raise KernelInputError(
            f"weight_scale: granularity {granularity} with block {problem.weight_block} is not known"
        )
    shape = (-(-problem.n // block[0]), -(-problem.k // block[1]))
    if scale.numel() != shape[0] * shape[1] or (granularity == "block" and tuple(scale.shape) != shape):
        raise KernelInputError(
            f"weight_scale: must have {list(shape)} for granularity {granularity} (block {problem.weight_block}) of a "
            f"[{problem.n}, {problem.k}] weight; found {list(scale.shape)}"
        )
    narrow = scale.dtype in (torch.uint8, torch.float8_e8m0fnu)
    kept = scale.view(torch.uint8) if narrow else widen_scale(scale)
    codes = weight if weight.stride(-1) == 1 else weight.contiguous()
    return cpu_fp8.Weight(codes, kept.reshape(shape).contiguous(), block)


def _quantization(problem: Problem, scale: torch.Tensor | None, upper: torch.Tensor | None) -> cpu_fp8.Quantization:
    """What the problem says about inputs, in the terms of the op."""
    if problem.input_granularity == "none":
        return cpu_fp8.Quantization()
    if problem.input_granularity == "block":
        if problem.weight_block is None:
            raise KernelInputError(f"problem: block inputs need weight_block; found none in scheme '{problem.scheme}'")
        return cpu_fp8.Quantization("mx" if problem.scheme == "mxfp8" else "group", problem.weight_block[1])
    if problem.input_scaling == "static":
        if scale is None:
            raise KernelInputError(
                "input_scale: static scaling needs it; found none; give it or declare dynamic scaling"
            )
        return cpu_fp8.Quantization("static", scale=_one_number(scale, "input_scale"))
    bound = math.inf if upper is None else _one_number(upper, "input_scale_ub")
    mode = "group" if problem.input_granularity == "token" else "tensor"
    return cpu_fp8.Quantization(mode, max(1, problem.k), upper=bound)


def _one_number(scale: torch.Tensor, name: str) -> float:
    if scale.numel() != 1:
        raise KernelInputError(f"{name}: must hold one number, shaped [] or [1]; found {list(scale.shape)}")
    return float(widen_scale(scale).reshape(()))
