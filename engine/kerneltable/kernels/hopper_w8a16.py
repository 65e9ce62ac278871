"""hopper_w8a16: FP8 weights widened in registers and multiplied with 16-bit inputs, in CUDA for SM90 (wgmma)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import hopper_w8a16 as op
from kerneltable.ops.torch_fp8 import has_nan_codes, widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS = (1, 16, 32, 64, 128, 256, 4096)
"""One m of each band that has an instance of its own; they are compiled when a layer is packed, not at a first call."""


class Kernel:
    """A bound layer: the weight packed in tiles, its scales widened to f32 once or packed with it."""

    def __init__(self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
        """Pack the weight and compile what will be launched.

        weight        [n, k] e4m3
        weight_scale  f32, bf16, e8m0 or uint8 holding e8m0: [n] or [n, 1], [] or [1], [ceil(n / 128), ceil(k / 128)],
                      or e8m0 [n, k / 32]
        errors        KernelUnavailable without a CUDA device, NVRTC or cuda-bindings, for NaN codes, and for e8m0
                      scales whose product with a code is not exact in the input's type
        """
        if weight.device.type != "cuda":
            raise KernelUnavailable(f"hopper_w8a16: needs a CUDA device; the weight is on {weight.device}")
        codes = weight.view(torch.uint8)
        if has_nan_codes(codes):
            raise KernelUnavailable("hopper_w8a16: the weight holds NaN codes, which widening by bit shifts would lose")
        self.problem = problem
        self.dtypes = (problem.input, problem.output)
        self.multiprocessors = torch.cuda.get_device_properties(weight.device).multi_processor_count
        self.scales, self.weight_scale, exponents = _scales(problem, weight_scale)
        self.packed = op.pack(codes, exponents)
        for m in ROWS if problem.m is None else (problem.m,):
            choice = op.variant(m, problem.n, problem.k, self.scales, self.multiprocessors)
            op.load(choice, self.scales, *self.dtypes, weight.device.index or 0)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        return self.product(x, bias)

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, choice: op.Variant | None = None
    ) -> torch.Tensor:
        """The only stage; choice None lets the op choose."""
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            x = x.contiguous() if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
        added = None if bias is None else bias.to(torch.float32).contiguous()
        return op.product(
            x,
            self.packed,
            self.weight_scale,
            added,
            self.problem.n,
            self.scales,
            self.dtypes,
            self.multiprocessors,
            choice,
        )


def _scales(problem: Problem, scale: torch.Tensor) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
    """What a scale covers (KT_SCALES), the f32 scales, and the e8m0 exponents that are packed with the weight."""
    if problem.scheme == "mxfp8":
        exponents = scale.view(torch.uint8)
        low, high = op.EXACT_EXPONENTS[problem.input]
        if bool(((exponents < low) | (exponents > high)).any()):
            found = f"{int(exponents.min())} to {int(exponents.max())}"
            raise KernelUnavailable(
                f"hopper_w8a16: e8m0 codes must lie in {low} to {high} to be exact in {problem.input}; found {found}"
            )
        return op.BY_32, None, exponents
    wide = widen_scale(scale)
    if problem.weight_granularity == "block":
        return op.BY_BLOCK, wide.contiguous(), None
    return op.BY_ROW, wide.reshape(-1).expand(problem.n).contiguous(), None
