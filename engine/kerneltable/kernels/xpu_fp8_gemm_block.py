"""xpu_fp8_gemm_block: oneDNN on Intel GPUs through _xpu_C::fp8_gemm, 1x128 inputs and 128x128 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops import xpu_fp8_gemm
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem


BLOCK_ROWS = 128


class Kernel:
    """A bound layer: the weight as in the checkpoint (read as a view), its scales transposed and contiguous."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [ceil(n / 128), k / 128] f32, bf16 or e8m0.

        errors   KernelUnavailable when the op is not registered
        """
        self._op = xpu_fp8_gemm.find_op()
        self._weight = weight.contiguous()
        self._scale = xpu_fp8_gemm.pack_block_scale(widen_scale(weight_scale), problem.n, BLOCK_ROWS)
        self._quantize = input_quantizer(problem, weight.device)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, k / 128] f32."""
        return self._quantize(x)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        return xpu_fp8_gemm.product(self._op, codes, scales, self._weight, self._scale, self._output)
