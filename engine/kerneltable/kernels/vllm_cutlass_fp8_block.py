"""vllm_cutlass_fp8_block: CUTLASS of an installed vLLM, 1x128 inputs and 128x128 weights with float32 scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops import vllm_cutlass
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32, read as a [k / 128, n / 128] view."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [n / 128, k / 128] f32, bf16 or e8m0.

        errors   KernelUnavailable when no vLLM registers the op
        """
        self._op = vllm_cutlass.find_op()
        self._weight = weight.contiguous()
        self._scale = widen_scale(weight_scale).contiguous().t()
        self._quantize = input_quantizer(problem, weight.device, chip=chip)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, k / 128] f32."""
        return self._quantize(x)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        rows = vllm_cutlass.rows_together(scales)
        return vllm_cutlass.product(self._op, codes, rows, self._weight, self._scale, self._output)
