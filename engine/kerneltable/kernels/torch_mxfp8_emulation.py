"""torch_mxfp8_emulation: MXFP8 weights widened to the input's dtype in memory, then a matrix product of that dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.torch_dequantize import dequantize_weight
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_matmul import finish, product_16_to_f32, product_f32

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer; the input is not quantized. bf16 holds every widened weight exactly down to 2^-133."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Keep the layer: weight [n, k] e4m3, weight_scale [n, ceil(k / 32)] e8m0 or uint8 holding e8m0."""
        self.problem = problem
        self._weight = weight
        self._scale = widen_scale(weight_scale)
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k] bf16 or f32, bias [n] or None, returns [m, n] output dtype."""
        weight = dequantize_weight(self.problem, self._weight, self._scale, torch.float32).to(x.dtype)
        product = product_f32 if x.dtype == torch.float32 else product_16_to_f32
        return finish(product(x, weight), bias, self._output)
