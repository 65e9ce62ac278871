"""torch_scaled_mm_mxfp8: torch.nn.functional.scaled_mm with 1x32 e8m0 scales on both sides, SM100 and up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.torch_matmul import finish
from kerneltable.ops.torch_scaled_mm import mx_product, swizzle_mx_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales in the order of the matrix units."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [n, k / 32] e8m0 or uint8 holding e8m0."""
        self.problem = problem
        self._weight = weight.contiguous()
        self._quantize = input_quantizer(problem, weight.device, chip=chip)
        self._scale = swizzle_mx_scale(weight_scale)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and their swizzled e8m0 scales."""
        codes, exponents = self._quantize(x)
        return codes, swizzle_mx_scale(exponents)

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """What quantize gave, and bias [n] or None -> [m, n] in the problem's output dtype, rounded once."""
        codes, scales = quantized
        dtype = self._output if bias is None else torch.float32
        return finish(mx_product(codes, scales, self._weight, self._scale, dtype), bias, self._output)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        return self.product(self.quantize(x), bias)
