"""hopper_fp8_block_fixed: hopper_fp8_block with one tile for every m: no row's result depends on the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.kernels import hopper_fp8_block
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.hopper_fp8_choice import FIXED

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None
    ) -> None:
        """Keep the layer and compile what it will launch; arguments and errors are those of hopper_fp8_block."""
        tensors = {"weight": weight, "weight_scale": weight_scale}
        self._inner = hopper_fp8_block.Kernel(problem, **tensors, chip=chip, choice=FIXED)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        return self._inner(x, bias)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first stage, as in hopper_fp8_block."""
        return self._inner.quantize(x)

    def product(
        self, quantized: tuple[torch.Tensor, torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The second stage, as in hopper_fp8_block."""
        return self._inner.product(quantized, bias)
