"""flashinfer_mxfp8: FlashInfer's mm_mxfp8 (CUTLASS, b12x or cuDNN as it decides), SM100 and up, n and k at least 128.

Source of the calling convention: FlashInfer 0.7 (Apache-2.0), docstring of flashinfer.mm_mxfp8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import library_function, refuse_bias
from kerneltable.ops.torch_scaled_mm import swizzle_mx_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales in tiles of 128 rows by 4 columns."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [n, k / 32] e8m0 or uint8 holding e8m0.

        errors   KernelUnavailable when flashinfer cannot be imported or has no mm_mxfp8
        """
        self._gemm = library_function("flashinfer", "mm_mxfp8", "flashinfer-python")
        self._weight = weight.contiguous()
        self._quantize = input_quantizer(problem, weight.device, chip=chip)
        self._scale = swizzle_mx_scale(weight_scale).view(torch.uint8)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and their swizzled scales, uint8 holding e8m0."""
        codes, exponents = self._quantize(x)
        return codes, swizzle_mx_scale(exponents).view(torch.uint8)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        out: torch.Tensor = self._gemm(codes, self._weight.t(), scales, self._scale, out_dtype=self._output)
        return out
