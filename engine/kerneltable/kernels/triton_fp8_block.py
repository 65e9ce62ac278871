"""triton_fp8_block: block-scaled W8A8 in Triton, any n and k; the input is quantized 1x128 at each call."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops import triton_fp8_block as op
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.triton_chip import Strip, Tile, chip_of, on
from kerneltable.ops.triton_quantize import Quantized, quantize_block

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, features: Collection[str]
    ) -> None:
        """Keep the layer.

        weight        [n, k] e4m3
        weight_scale  [ceil(n / 128), ceil(k / 128)] f32, bf16, e8m0 or uint8 holding e8m0
        features      of the table's architecture
        """
        self.problem = problem
        self.weight = weight.contiguous()
        self.weight_scale = widen_scale(weight_scale).contiguous()
        self.chip = chip_of(weight.device, features)
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [m, k] @ dequantized(weight).T + bias [n] or None; returns [m, n] in the problem's output dtype."""
        return self.product(self.quantize(x), bias)

    def quantize(self, x: torch.Tensor) -> Quantized:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales [m, ceil(k / 128)] f32."""
        with on(x.device):
            return quantize_block(x, self.chip)

    def product(
        self, quantized: Quantized, bias: torch.Tensor | None = None, tile: Tile | Strip | None = None
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight; tile None lets the op choose."""
        codes, scales = quantized
        with on(codes.device):
            return op.product(codes, scales, self.weight, self.weight_scale, bias, self._output, self.chip, tile)
