"""vllm_cutlass_fp8: CUTLASS of an installed vLLM, one scale per token or tensor and per output channel or tensor."""

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
    """A bound layer: the weight as in the checkpoint, its scales as one column of f32."""

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
        """Pack: weight [n, k] e4m3; weight_scale [] or [1], [n] or [n, 1]; input_scale, input_scale_ub [] or [1].

        errors   KernelUnavailable when no vLLM registers the op
        """
        self._op = vllm_cutlass.find_op()
        self._weight = weight.contiguous()
        self._scale = widen_scale(weight_scale).reshape(-1, 1).contiguous()
        self._quantize = input_quantizer(problem, weight.device, input_scale, input_scale_ub, chip=chip)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, 1] or [1, 1] f32."""
        codes, scales = self._quantize(x)
        return codes, scales.reshape(-1, 1)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        return vllm_cutlass.product(self._op, codes, scales, self._weight, self._scale, self._output)
