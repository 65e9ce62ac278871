"""hopper_fp8_block: block-scaled W8A8 in CUDA for SM90 (TMA, wgmma); the input is quantized 1x128 at each call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import hopper_fp8_block as op
from kerneltable.ops.cuda_quantize import quantize_block_by_column, quantizer
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS = (1, 16, 32, 64, 128)
"""One m of each band that has an instance of its own; they are compiled when a layer is packed, not at a first call."""


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Keep the layer and compile what it will launch.

        weight        [n, k] e4m3
        weight_scale  [ceil(n / 128), ceil(k / 128)] f32, bf16, e8m0 or uint8 holding e8m0
        errors        KernelUnavailable without a CUDA device, NVRTC or cuda-bindings
        """
        if weight.device.type != "cuda":
            raise KernelUnavailable(f"hopper_fp8_block: needs a CUDA device; the weight is on {weight.device}")
        self.problem = problem
        self.weight = weight.contiguous()
        self.weight_scale = widen_scale(weight_scale).contiguous()
        self.multiprocessors = torch.cuda.get_device_properties(weight.device).multi_processor_count
        index = weight.device.index or 0
        quantizer(problem.input, index)
        rows = ROWS if problem.m is None else (problem.m,)
        for m in (*rows, *((4096,) if problem.m is None else ())):
            op.load(op.variant(m, problem.n, problem.k, self.multiprocessors), problem.output, index)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        return self.product(self.quantize(x), bias)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales [ceil(k / 128), m padded to 4] f32."""
        return quantize_block_by_column(x)

    def product(
        self,
        quantized: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor | None = None,
        choice: op.Stream | op.Tiled | None = None,
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight; choice None lets the op choose."""
        codes, scales = quantized
        added = None if bias is None else bias.to(torch.float32).contiguous()
        return op.product(
            codes, scales, self.weight, self.weight_scale, added, self.problem.output, self.multiprocessors, choice
        )
