"""hopper_fp8_rowwise: W8A8 in CUDA for SM90 and few rows; scales per token or tensor, per output channel or tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.ops import hopper_fp8_rowwise as op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.hopper import settle
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS = (1, 16, 32, 64)
"""What these m ask for is compiled when a layer is packed: all that there is."""


class Kernel:
    """A bound layer: the weight as in the checkpoint; one scale a tensor is expanded to a vector, which changes no
    number."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
        chip: CudaChip | None,
    ) -> None:
        """Keep the layer and compile what it will launch.

        weight                       [n, k] e4m3
        weight_scale                 [] or [1], [n] or [n, 1]
        input_scale, input_scale_ub  [] or [1], or None
        chip                         what the table says of the device
        errors                       KernelUnavailable without a CUDA device, NVRTC or cuda-bindings
        """
        self.chip = needed(chip, "hopper_fp8_rowwise", weight.device)
        self.problem = problem
        whole = weight.contiguous()
        self.weight = whole if whole.data_ptr() % 16 == 0 else whole.clone()
        self.weight_scale = widen_scale(weight_scale).reshape(-1).expand(problem.n).contiguous()
        self._quantize = input_quantizer(problem, weight.device, input_scale, input_scale_ub, chip=self.chip)
        self._bias = WideBias()
        for m in ROWS if problem.m is None else (problem.m,):
            op.prepare(m, problem.n, problem.k, problem.output, self.chip, weight.device.index or 0)
        settle(weight.device)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales [m, 1] f32, or one for all rows."""
        return self._quantize(x)

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight, plus bias [n] or None."""
        added = self._bias(bias)
        return op.product(*quantized, self.weight, self.weight_scale, added, self.problem.output, self.chip)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        return self.product(self.quantize(x), bias)
