"""marlin_w8a16: FP8 weights widened in registers and multiplied with 16-bit inputs, in CUDA from SM80 on (mma.sync)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from kerneltable.ops import cuda_parts
from kerneltable.ops import marlin_w8a16 as op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.cuda_memory import give_back, take
from kerneltable.ops.cuda_vectors import Launch
from kerneltable.ops.fragment_tiles import codes_of, pack, scales_of, tensors_of
from kerneltable.ops.hopper import output_of
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

MOST_ROWS = 4096
"""Different m that a layer remembers at a time."""


@dataclass(frozen=True, slots=True)
class Call:
    """What calls with one number of rows need: the launches, and the bytes of the parts of k (add None: no parts)."""

    product: Launch
    add: Launch | None
    sums: int


class Kernel:
    """A bound layer: the weight packed in tiles, its scales widened to f32 once or packed with it."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        chip: CudaChip | None,
        packed: torch.Tensor | None = None,
    ) -> None:
        """Pack the weight and compile what will be launched.

        weight        [n, k] e4m3
        weight_scale  f32, bf16, e8m0 or uint8 holding e8m0: [n] or [n, 1], [] or [1], [ceil(n / 128), ceil(k / 128)],
                      or e8m0 [n, k / 32]
        chip          what the table says of the device
        packed        the same weights in this layout, as another kernel packed them; None: they are packed here
        errors        KernelUnavailable without a CUDA device, NVRTC or cuda-bindings; WeightsRefused for NaN codes, and
                      for e8m0 scales whose product with a code is not exact in the input's type
        """
        self.chip = needed(chip, "marlin_w8a16", weight.device)
        self.problem = problem
        self.dtypes = (problem.input, problem.output)
        codes = codes_of("marlin_w8a16", weight)
        self.scales, self.weight_scale, exponents = scales_of("marlin_w8a16", problem, codes, weight_scale)
        self.packed = pack(codes, exponents) if packed is None else packed
        self._weights = (self.packed.data_ptr(), 0 if self.weight_scale is None else self.weight_scale.data_ptr())
        self._empty = output_of(0, problem.n, problem.output, weight.device)
        self._bias = WideBias()
        self._calls: dict[int, Call] = {}
        index = weight.device.index or 0
        cuda_parts.prepare(1, problem.n, problem.output, self.chip, index)
        if problem.m is not None:
            self._call(problem.m)
            return
        for choice in chain.from_iterable(op.choices(self.chip.shared_bytes).values()):  # now, not at a first call
            op.prepare(1, problem.n, problem.k, self.scales, self.dtypes, self.chip, index, (choice, 1))

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        address = x.data_ptr()
        if address % 16 or not x.is_contiguous():
            return self.product(x, bias)
        m, n, k = x.shape[0], self.problem.n, self.problem.k
        call = self._calls.get(m) or self._call(m)
        first, add = call.product, call.add
        out, added = self._empty.new_empty(m, n), self._bias(bias)
        to, plus = out.data_ptr(), 0 if added is None else added.data_ptr()
        if add is None:
            first.function(first.grid, first.block, (address, *self._weights, plus, to, 0, m, n, k, k))
            return out
        sums = take(call.sums, first.function)
        try:
            first.function(first.grid, first.block, (address, *self._weights, plus, to, sums, m, n, k, k))
            add.function(add.grid, add.block, (sums, plus, to, m, n, first.grid[2]))
        finally:
            give_back(sums)
        return out

    def _call(self, m: int) -> Call:
        """What calls with m rows need, kept."""
        problem, index = self.problem, self.packed.device.index or 0
        product = op.prepare(m, problem.n, problem.k, self.scales, self.dtypes, self.chip, index)
        parts = product.grid[2]
        add = cuda_parts.prepare(m, problem.n, problem.output, self.chip, index) if parts > 1 else None
        if len(self._calls) >= MOST_ROWS:
            self._calls.clear()
        found = self._calls[m] = Call(product, add, parts * m * problem.n * 4 if parts > 1 else 0)
        return found

    @staticmethod
    def unpack(problem: Problem, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors that `packed` holds, as bytes: weight, and the weight_scale of mxfp8."""
        return tensors_of(packed, problem.n, problem.k)

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, choice: tuple[op.Variant, int] | None = None
    ) -> torch.Tensor:
        """Both stages, the second one only where k is split; choice None lets the op choose."""
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            x = x.contiguous() if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
        n, added = self.problem.n, self._bias(bias)
        return op.product(x, self.packed, self.weight_scale, added, n, self.scales, self.dtypes, self.chip, choice)
