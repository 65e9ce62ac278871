"""torch_scaled_mm_rowwise: torch.nn.functional.scaled_mm with one scale per token and one per output channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_matmul import finish
from kerneltable.ops.torch_scaled_mm import row_product, tensor_product

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer. One scale a tensor is expanded to a vector, which changes no number."""

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
        """Pack: weight [n, k] e4m3; weight_scale [] or [1], [n] or [n, 1]; input_scale, input_scale_ub [] or [1]."""
        self.problem = problem
        self._weight = weight.contiguous()
        self._scale = widen_scale(weight_scale).reshape(1, -1).expand(1, problem.n).contiguous()
        self._quantize = input_quantizer(problem, weight.device, input_scale, input_scale_ub, chip=chip)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)
        self._one = torch.ones((), dtype=torch.float32, device=weight.device)
        self._direct = direct_dtypes(weight.device)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, 1] f32."""
        codes, scales = self._quantize(x)
        if scales.numel() == 1:  # one for all rows
            scales = scales.reshape(1, 1).expand(x.shape[0], 1).contiguous()
        return codes, scales

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """What quantize gave, and bias [n] or None -> [m, n] in the problem's output dtype, rounded once."""
        codes, scales = quantized
        dtype = self._output if bias is None else torch.float32
        if dtype in self._direct:
            accumulated = row_product(codes, scales, self._weight, self._scale, dtype)
        else:
            plain = tensor_product(codes, self._one, self._weight, self._one, torch.float32)
            accumulated = plain * scales * self._scale
        return finish(accumulated, bias, self._output)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        return self.product(self.quantize(x), bias)


def direct_dtypes(device: torch.device) -> frozenset[torch.dtype]:
    """The output dtypes that the row-wise recipe itself gives on this device; others take float32 sums scaled after.

    source   torch 2.11, ScaledBlas.cpp: cuBLASLt (SM90) gives all three, CUTLASS (other NVIDIA chips) 16-bit ones,
             hipBLASLt bf16
    """
    if device.type == "cuda" and torch.version.hip is not None:
        return frozenset({torch.bfloat16})
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] != 9:
        return frozenset({torch.bfloat16, torch.float16})
    return frozenset({torch.bfloat16, torch.float16, torch.float32})
