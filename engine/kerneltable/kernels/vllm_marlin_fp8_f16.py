"""vllm_marlin_fp8_f16: Marlin of an installed vLLM, FP8 weights widened to f16 in registers; inputs stay f16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.ops import vllm_marlin
from kerneltable.ops.installed import refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight in Marlin's order, its scales rounded to f16."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Pack.

        weight        [n, k] e4m3
        weight_scale  f32, bf16 or e8m0: [] or [1], [n] or [n, 1], or [ceil(n / 128), k / 128]
        errors        KernelUnavailable: no vLLM; WeightsRefused: NaN codes, or a scale that f16 cannot hold
        """
        self.problem = problem
        scale = widen_scale(weight_scale)
        self._packed = vllm_marlin.pack(weight, scale, problem.weight_granularity, torch.float16)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        return vllm_marlin.product(self._packed, x.contiguous())
