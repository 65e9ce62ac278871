"""reference: dequantize weight and input as the scheme says, multiply in float32. The meaning of every scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.formats import FORMATS
from kerneltable.ops.torch_dequantize import dequantize_input, dequantize_weight, quantize_input
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_matmul import finish, product_f32

if TYPE_CHECKING:
    from kerneltable.model import Problem

ELEMENTS_AT_ONCE = 2**26
"""Weight elements dequantized at a time: 256 MiB of float32."""


class Kernel:
    """A bound layer. The weight stays as in the checkpoint and is dequantized at every call, some rows at a time."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
    ) -> None:
        """Keep the layer.

        weight         [n, k] e4m3
        weight_scale   f32, bf16, e8m0 or uint8 holding e8m0; [] or [1], [n] or [n, 1], or one a block
        input_scale    [] or [1], needed when the problem's input scaling is static
        input_scale_ub [] or [1] f32, the largest dynamic input scale
        """
        self.problem = problem
        self._weight = weight
        self._scale = widen_scale(weight_scale)
        self._input_scale = input_scale
        self._upper = input_scale_ub
        self._output = getattr(torch, FORMATS[problem.output].torch_dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        problem = self.problem
        wide = self._input(x)
        out = torch.empty(x.shape[0], problem.n, dtype=self._output, device=x.device)
        step = max(1, ELEMENTS_AT_ONCE // max(1, problem.k))
        for first in range(0, problem.n, step):
            rows = slice(first, min(first + step, problem.n))
            weight = dequantize_weight(problem, self._weight, self._scale, torch.float32, rows)
            part = None if bias is None else bias[rows]
            out[:, rows] = finish(product_f32(wide, weight), part, self._output)
        return out

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        """x as float32 [m, k], after quantization where the scheme quantizes inputs."""
        if self.problem.input_granularity == "none":
            return x.to(torch.float32)
        quantized = quantize_input(self.problem, x, self._input_scale, self._upper)
        return dequantize_input(self.problem, quantized, torch.float32)
