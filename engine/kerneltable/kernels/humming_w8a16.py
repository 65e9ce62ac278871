"""humming_w8a16: humming's just-in-time GEMM, FP8 weights widened to bf16 in registers; inputs stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.ops import humming_w8a16 as op
from kerneltable.ops.installed import refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight in humming's order, scales of channels and blocks rounded to bf16."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Pack.

        weight        [n, k] e4m3
        weight_scale  f32, bf16 or e8m0: [] or [1], [n] or [n, 1], or [ceil(n / 128), k / 128]
        errors        KernelUnavailable: no humming; WeightsRefused: NaN codes, or a scale that bf16 cannot hold
        """
        self.problem = problem
        self._packed = op.pack(weight, widen_scale(weight_scale), problem.weight_granularity, torch.bfloat16)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        return op.product(self._packed, x.contiguous())
