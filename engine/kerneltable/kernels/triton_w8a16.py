"""triton_w8a16: FP8 weights widened to the input's type in registers, any n and k; the input is never quantized."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops import triton_w8a16 as op
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.triton_chip import Strip, Tile, chip_of, on

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight's bytes as in the checkpoint, its scales widened to f32 once.

    Packing looks once whether the weight holds NaN codes; without them widening is two instructions shorter.
    """

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, features: Collection[str]
    ) -> None:
        """Keep the layer.

        weight        [n, k] e4m3
        weight_scale  f32, bf16, e8m0 or uint8 holding e8m0: [ceil(n / 128), ceil(k / 128)] (block), [n] or [n, 1]
                      (channel), [] or [1] (tensor)
        features      of the table's architecture
        """
        self.problem = problem
        self.weight = weight.contiguous().view(torch.uint8)
        scale = widen_scale(weight_scale)
        self.weight_scale = (scale if problem.weight_granularity == "block" else scale.reshape(-1)).contiguous()
        self.chip = chip_of(weight.device, features)
        self.nan_codes = op.has_nan(self.weight)
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [m, k] @ dequantized(weight).T + bias [n] or None; returns [m, n] in the problem's output dtype."""
        return self.product(x, bias)

    def product(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        tile: Tile | Strip | None = None,
        how: str | None = None,
    ) -> torch.Tensor:
        """The only stage; tile and how (see op.product) None let the op choose."""
        with on(x.device):
            return op.product(
                x, self.weight, self.weight_scale, bias, self._output, self.chip, tile,
                nan_codes=self.nan_codes, how=how,
            )  # fmt: skip
