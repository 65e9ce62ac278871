"""flashinfer_fp8_block_sm90: FlashInfer's fp8_blockscale_gemm_sm90 with inputs that are quantized 1x128 before.

Source of the calling convention: FlashInfer 0.7 (Apache-2.0), docstring of flashinfer.gemm.fp8_blockscale_gemm_sm90 and
its tests. It can quantize bf16 inputs itself, but by a product with 448 / amax: codes at ties then differ from the
scheme's, by more than the bound allows.

It compiles a kernel for each n, k and tile with nvcc at its first call, about 2 s each, and keeps it in a folder. By
its source (0.7.2.post1) every call takes memory of about n * k bytes plus k times the largest m that the process has
seen, and a driver's error while it loads a kernel ends the process, so that no other kernel can take over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.installed import library_function, refuse_bias
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip

ROWS_MULTIPLE = 4
"""The kernel reads scales through TMA, whose strides are multiples of 16 bytes."""


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None = None
    ) -> None:
        """Pack: weight [n, k] e4m3, weight_scale [ceil(n / 128), k / 128] f32, bf16 or e8m0.

        errors   KernelUnavailable when flashinfer cannot be imported or has no such function
        """
        self._gemm = library_function("flashinfer.gemm", "fp8_blockscale_gemm_sm90", "flashinfer-python")
        self._weight = weight.contiguous()
        self._scale = widen_scale(weight_scale).contiguous()
        self._quantize = input_quantizer(problem, weight.device, chip=chip)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [m, k] -> codes [m, k] e4m3 and scales [m, k / 128] f32 with strides 1 and m rounded up to 4."""
        codes, scales = self._quantize(x)
        m = x.shape[0]
        padded = torch.nn.functional.pad(scales.t(), (0, -m % ROWS_MULTIPLE)).contiguous()
        return codes, padded.t()[:m]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T; x [m, k], bias None: the row takes none; returns [m, n] in the output dtype."""
        refuse_bias(bias)
        codes, scales = self.quantize(x)
        out: torch.Tensor = self._gemm(codes, self._weight, scales, self._scale, out_dtype=torch.bfloat16)
        return out
