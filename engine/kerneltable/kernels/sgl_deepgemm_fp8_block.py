"""sgl_deepgemm_fp8_block: SGLang's distribution of DeepGEMM, which PyPI has built; the same module and functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.kernels import deepgemm_fp8_block

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel(deepgemm_fp8_block.Kernel):
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    distribution = "sgl-deep-gemm"

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack; arguments and errors are those of deepgemm_fp8_block."""
        super().__init__(problem, weight=weight, weight_scale=weight_scale, chip=chip)
