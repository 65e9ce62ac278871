"""torch_scaled_mm_tensorwise: torch.nn.functional.scaled_mm with one scale for the weight and one for the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_matmul import finish
from kerneltable.ops.torch_scaled_mm import tensor_product

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scale as float32."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
        chip: CudaChip | None = None,
    ) -> None:
        """Pack: weight [n, k] e4m3; weight_scale, input_scale and input_scale_ub [] or [1]."""
        self.problem = problem
        self._weight = weight.contiguous()
        self._scale = widen_scale(weight_scale).reshape(())
        self._quantize = input_quantizer(problem, weight.device, input_scale, input_scale_ub, chip=chip)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and the scale [] f32."""
        return self._quantize(x)

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """What quantize gave, and bias [n] or None -> [m, n] in the problem's output dtype, rounded once."""
        codes, scale = quantized
        dtype = self._output if bias is None else torch.float32
        return finish(tensor_product(codes, scale, self._weight, self._scale, dtype), bias, self._output)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        return self.product(self.quantize(x), bias)
