"""aiter_fp8_block: AITER's gemm_a8w8_blockscale on CDNA3 and CDNA4, 1x128 inputs and 128x128 weights.

Source of the calling convention: AITER (MIT), op_tests/test_gemm_a8w8_blockscale.py. On CDNA3, whose FP8 is e4m3fnuz,
codes of weight and input are converted to the same numbers at twice the scale, exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.formats import FORMATS
from kerneltable.ops.fnuz import to_fnuz
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import library_function, library_value, refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem


class Kernel:
    """A bound layer: the weight in the chip's own FP8, its scales widened to f32 (doubled where that is e4m3fnuz)."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [n / 128, k / 128] f32, bf16 or e8m0.

        errors   KernelUnavailable when aiter cannot be imported, or its FP8 is neither e4m3fn nor e4m3fnuz
        """
        self._gemm = library_function("aiter", "gemm_a8w8_blockscale", "amd-aiter")
        native = getattr(library_value("aiter", "dtypes", "amd-aiter"), "fp8", None)
        if native not in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
            raise KernelUnavailable(f"aiter: FP8 of this chip must be e4m3fn or e4m3fnuz; found {native}")
        self._fnuz = native == torch.float8_e4m3fnuz
        scale = widen_scale(weight_scale).contiguous()
        self._weight = to_fnuz(weight.contiguous()) if self._fnuz else weight.contiguous()
        self._scale = scale * 2 if self._fnuz else scale
        self._quantize = input_quantizer(problem, weight.device)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] in the chip's own FP8 and scales [m, k / 128] f32."""
        codes, scales = self._quantize(x)
        return (to_fnuz(codes), scales * 2) if self._fnuz else (codes, scales)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        out: torch.Tensor = self._gemm(codes, self._weight, scales, self._scale, self._output)
        return out
