"""triton_fp8_rowwise: W8A8 in Triton with scales per token or tensor and per output channel or tensor, any n and k."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelInputError
from kerneltable.formats import FORMATS
from kerneltable.ops import triton_fp8_rowwise as op
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.triton_chip import Strip, Tile, chip_of, on
from kerneltable.ops.triton_quantize import Quantized, quantize_static, quantize_tensor, quantize_token

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
        features: Collection[str],
    ) -> None:
        """Keep the layer.

        weight          [n, k] e4m3
        weight_scale    f32 or bf16: [n] or [n, 1] (channel), [] or [1] (tensor)
        input_scale     [] or [1], needed when the problem's input scaling is static
        input_scale_ub  [] or [1], the largest dynamic input scale
        features        of the table's architecture
        """
        if problem.input_scaling == "static" and input_scale is None:
            raise KernelInputError(
                "input_scale: static scaling needs it; found none; give it or declare dynamic scaling"
            )
        self.problem = problem
        self.weight = weight.contiguous()
        self.weight_scale = widen_scale(weight_scale).reshape(-1).contiguous()
        self.chip = chip_of(weight.device, features)
        self._input_scale = None if input_scale is None else widen_scale(input_scale).reshape(1)
        self._upper = None if input_scale_ub is None else widen_scale(input_scale_ub).reshape(1)
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [m, k] @ dequantized(weight).T + bias [n] or None; returns [m, n] in the problem's output dtype."""
        return self.product(self.quantize(x), bias)

    def quantize(self, x: torch.Tensor) -> Quantized:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales f32, [m, 1] or one number."""
        with on(x.device):
            if self.problem.input_scaling == "static" and self._input_scale is not None:
                return quantize_static(x, self._input_scale, self.chip)
            if self.problem.input_granularity == "token":
                return quantize_token(x, self._upper, self.chip)
            return quantize_tensor(x, self._upper, self.chip)

    def product(
        self, quantized: Quantized, bias: torch.Tensor | None = None, tile: Tile | Strip | None = None
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight; tile None lets the op choose."""
        codes, scales = quantized
        with on(codes.device):
            return op.product(codes, scales, self.weight, self.weight_scale, bias, self._output, self.chip, tile)
