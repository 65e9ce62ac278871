"""sgl_deepgemm_fp8_block: SGLang's distribution of DeepGEMM, which PyPI has built; the same module and functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.kernels import deepgemm_fp8_block
from kerneltable.ops.installed import refuse_bias

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack; arguments and errors are those of deepgemm_fp8_block."""
        tensors = {"weight": weight, "weight_scale": weight_scale}
        self._inner = deepgemm_fp8_block.Kernel(problem, **tensors, chip=chip, distribution="sgl-deep-gemm")

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        return self._inner(x, bias)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage, as in deepgemm_fp8_block."""
        return self._inner.quantize(x)

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """The second stage, as in deepgemm_fp8_block."""
        return self._inner.product(quantized, bias)
