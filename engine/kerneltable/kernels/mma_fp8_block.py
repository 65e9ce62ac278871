"""mma_fp8_block: block-scaled W8A8 in CUDA with mma.sync; the input is quantized 1x128 at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kerneltable.ops import cuda_parts, cuda_quantize
from kerneltable.ops import mma_fp8_block as op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.cuda_memory import give_back, take
from kerneltable.ops.cuda_vectors import Launch, aligned
from kerneltable.ops.hopper import ceil_div, output_of
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

MOST_ROWS = 4096
"""Different m that a layer remembers at a time."""


@dataclass(frozen=True, slots=True)
class Call:
    """What calls with one number of rows need: the launches, and the memory between them, codes first.

    add      of the parts of k; None where k is whole
    padded   scales of a block of k, which begin at `scales`; the parts of k begin at `sums`
    bytes    in all
    """

    quantize: Launch
    product: Launch
    add: Launch | None
    padded: int
    scales: int
    sums: int
    bytes: int


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self, problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, chip: CudaChip | None
    ) -> None:
        """Keep the layer and compile what it will launch.

        weight        [n, k] e4m3
        weight_scale  [ceil(n / 128), ceil(k / 128)] f32, bf16, e8m0 or uint8 holding e8m0
        chip          what the table says of the device
        errors        KernelUnavailable without a CUDA device, NVRTC or cuda-bindings
        """
        self.chip = needed(chip, "mma_fp8_block", weight.device)
        self.problem = problem
        self.weight = aligned(weight)
        self.weight_scale = widen_scale(weight_scale).contiguous()
        self._weights = (self.weight.data_ptr(), self.weight_scale.data_ptr())
        self._empty = output_of(0, problem.n, problem.output, weight.device)
        self._bias = WideBias()
        self._calls: dict[int, Call] = {}
        index = weight.device.index or 0
        cuda_quantize.quantizer(problem.input, self.chip, index, problem.k)
        cuda_parts.prepare(1, problem.n, problem.output, self.chip, index)
        if problem.m is not None:
            self._call(problem.m)
            return
        for choice in op.choices(self.chip.shared_bytes).values():  # compiled now, not at a first call
            op.prepare(1, problem.n, problem.k, problem.output, self.chip, index, choice, 1)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        address = x.data_ptr()
        if address % 16 or not x.is_contiguous():
            return self.product(self.quantize(x), bias)
        m, n, k = x.shape[0], self.problem.n, self.problem.k
        call = self._calls.get(m) or self._call(m)
        first, second, third = call.quantize, call.product, call.add
        out, added = self._empty.new_empty(m, n), self._bias(bias)
        to, plus = out.data_ptr(), 0 if added is None else added.data_ptr()
        codes = take(call.bytes, first.function)
        try:
            scales, sums = codes + call.scales, 0 if third is None else codes + call.sums
            first.function(first.grid, first.block, (address, codes, scales, m, m, k, k, 1, call.padded, 0, 0))
            pointers = (codes, scales, *self._weights, plus, to, sums)
            second.function(second.grid, second.block, (*pointers, m, n, k, call.padded))
            if third is not None:
                third.function(third.grid, third.block, (sums, plus, to, m, n, second.grid[1]))
        finally:
            give_back(codes)
        return out

    def _call(self, m: int) -> Call:
        """What calls with m rows need, kept."""
        problem, index = self.problem, self.weight.device.index or 0
        n, k = problem.n, problem.k
        product = op.prepare(m, n, k, problem.output, self.chip, index)
        parts, padded, scales = product.grid[1], ceil_div(m, 4) * 4, ceil_div(m * k, 256) * 256
        sums = ceil_div(scales + ceil_div(k, op.DEPTH) * padded * 4, 256) * 256
        add = cuda_parts.prepare(m, n, problem.output, self.chip, index) if parts > 1 else None
        quantize = cuda_quantize.prepare(m, k, problem.input, self.chip, index)
        bytes = sums + (parts * m * n * 4 if parts > 1 else 0)
        if len(self._calls) >= MOST_ROWS:
            self._calls.clear()
        found = self._calls[m] = Call(quantize, product, add, padded, scales, sums, bytes)
        return found

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales [ceil(k / 128), m padded to 4] f32."""
        return cuda_quantize.quantize_block_by_column(x, self.chip)

    def product(
        self,
        quantized: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor | None = None,
        choice: op.Variant | None = None,
        parts: int | None = None,
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight; what is None the op chooses."""
        codes, scales = quantized
        added = self._bias(bias)
        return op.product(
            codes, scales, self.weight, self.weight_scale, added, self.problem.output, self.chip, choice, parts
        )
