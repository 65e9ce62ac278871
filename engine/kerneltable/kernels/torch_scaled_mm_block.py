"""torch_scaled_mm_block: cuBLASLt through torch.nn.functional.scaled_mm, 1x128 inputs and 128x128 weights, SM90."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_matmul import finish
from kerneltable.ops.torch_scaled_mm import block_product, pack_block_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales padded to cuBLASLt's layout once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [ceil(n / 128), k / 128] f32, bf16 or e8m0."""
        self.problem = problem
        self._weight = weight.contiguous()
        self._scale = pack_block_scale(widen_scale(weight_scale))
        self._quantize = input_quantizer(problem, weight.device, chip=chip, by_column=True)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """x [m, k] -> codes [M, k] e4m3, scales [M, k / 128] f32 laid out by column, and m; M is m padded to 4."""
        return (*self._quantize(x), x.shape[0])

    def product(
        self, quantized: tuple[torch.Tensor, torch.Tensor, int], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What quantize gave, and bias [n] or None -> [m, n] in the problem's output dtype, rounded once."""
        codes, scales, m = quantized
        dtype = self._output if bias is None else torch.float32
        out = block_product(codes, scales, self._weight, self._scale, dtype)[:m]
        return finish(out, bias, self._output)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        return self.product(self.quantize(x), bias)
