"""deepgemm_fp8_block: DeepGEMM's fp8_gemm_nt on SM90, 1x128 inputs and 128x128 weights with float32 scales.

Source of the calling convention: DeepGEMM (MIT), README "Usage" and csrc/apis/gemm.hpp. On SM100 it takes power-of-two
scales only, for inputs too, which is another scheme than fp8_block_w8a8: the row is for SM90. sgl_deepgemm_fp8_block is
the same for the distribution of SGLang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import library_function, on_one_device, refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        chip: CudaChip | None = None,
        distribution: str = "deep-gemm",
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [ceil(n / 128), k / 128] f32, bf16 or e8m0.

        distribution  whose deep_gemm errors speak of
        errors        KernelUnavailable when deep_gemm cannot be imported or has no fp8_gemm_nt, and on a second CUDA
                      device
        """
        self._gemm = library_function("deep_gemm", "fp8_gemm_nt", distribution)
        with on_one_device("deep_gemm", weight.device):
            self._weight = (weight.contiguous(), widen_scale(weight_scale).contiguous())
            self._quantize = input_quantizer(problem, weight.device, chip=chip, by_column=True)
        self._output: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, k / 128] f32 with strides 1 and m rounded up to 4.

        Laid out so, the library takes the scales as they are; else it transposes them first, in a launch of its own.
        """
        codes, scales = self._quantize(x)
        return codes[: x.shape[0]], scales[: x.shape[0]]

    def product(self, quantized: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None = None) -> torch.Tensor:
        """What quantize gave -> [m, n] in the output dtype; bias None: the row takes none."""
        refuse_bias(bias)
        codes, weight = quantized[0], self._weight[0]
        out = torch.empty(codes.shape[0], weight.shape[0], dtype=self._output, device=codes.device)
        self._gemm(quantized, self._weight, out)
        return out

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        return self.product(self.quantize(x))
