"""triton_mxfp8_w8a16: MXFP8 weights widened to the input's type in registers; the input is never quantized."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops import triton_mxfp8 as op
from kerneltable.ops.triton_chip import Strip, Tile, chip_of, on
from kerneltable.ops.triton_w8a16 import has_nan

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: codes and scales as bytes, as in the checkpoint.

    Packing looks once whether the weight holds NaN codes, and whether all scales are moderate enough to be folded
    into bf16 weights exactly; the kernel is faster where it need not care.
    """

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, features: Collection[str]
    ) -> None:
        """Keep the layer.

        weight        [n, k] e4m3
        weight_scale  [n, k / 32] e8m0, or uint8 holding e8m0
        features      of the table's architecture
        """
        self.problem = problem
        self.weight = weight.contiguous().view(torch.uint8)
        self.weight_scale = weight_scale.contiguous().view(torch.uint8)
        self.chip = chip_of(weight.device, features)
        self.nan_codes = has_nan(self.weight)
        self.fold = op.foldable(self.weight_scale)
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
                nan_codes=self.nan_codes, fold=self.fold, how=how,
            )  # fmt: skip
