"""hopper_w8a16: FP8 weights widened in registers and multiplied with 16-bit inputs, in CUDA for SM90 (wgmma)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from kerneltable.ops import hopper_w8a16 as op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.cuda_launch import TensorMap
from kerneltable.ops.fragment_tiles import BY_BLOCK, DEPTH, RESCALED, codes_of, pack, scales_of, tensors_of
from kerneltable.ops.hopper import ceil_div, output_of, settle
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.ops.hopper_w8a16_variants import Wide, rows_of_each
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

MOST_ROWS = 4096
"""Different m that a layer remembers at a time."""


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
        self.chip = needed(chip, "hopper_w8a16", weight.device)
        codes = codes_of("hopper_w8a16", weight)
        self.problem = problem
        self.dtypes = (problem.input, problem.output)
        self.scales, self.weight_scale, exponents = scales_of("hopper_w8a16", problem, codes, weight_scale)
        if self.scales == BY_BLOCK and self.weight_scale is not None:
            self.scales = RESCALED if op.rescales(self.weight_scale, problem.input) else BY_BLOCK
        self.packed = pack(codes, exponents) if packed is None else packed
        self._weights = (self.packed.data_ptr(), 0 if self.weight_scale is None else self.weight_scale.data_ptr())
        self._empty = output_of(0, problem.n, problem.output, weight.device)
        self._blocks = ceil_div(problem.k, DEPTH)
        self._bias = WideBias()
        self._launches: dict[int, tuple[op.Launch, Callable[[int], TensorMap]]] = {}
        shape = (problem.n, problem.k, self.scales, self.chip.multiprocessors)
        for m in rows_of_each(*shape) if problem.m is None else (problem.m,):
            self._launch(m)  # compiled now, not at a first call
        settle(weight.device)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        address = x.data_ptr()
        if address % 16 or not x.is_contiguous():
            return self.product(x, bias)
        added = self._bias(bias)
        m, n = x.shape[0], self.problem.n
        launch, input_map = self._launches.get(m) or self._launch(m)
        out = self._empty.new_empty(m, n)
        addresses = (*self._weights, 0 if added is None else added.data_ptr(), out.data_ptr())
        op.start(launch, input_map(address), addresses, (m, n, self._blocks), out)
        return out

    def _launch(self, m: int) -> tuple[op.Launch, Callable[[int], TensorMap]]:
        """What calls with m rows need, kept."""
        problem, index = self.problem, self.packed.device.index or 0
        launch = op.prepare(m, problem.n, problem.k, self.scales, self.dtypes, self.chip, index)
        if len(self._launches) >= MOST_ROWS:
            self._launches.clear()
        found = self._launches[m] = (launch, op.input_maps(m, problem.k, problem.input, launch.box))
        return found

    @staticmethod
    def unpack(problem: Problem, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors that `packed` holds, as bytes: weight, and the weight_scale of mxfp8."""
        return tensors_of(packed, problem.n, problem.k)

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, choice: Variant | Wide | None = None
    ) -> torch.Tensor:
        """The only stage; choice None lets the op choose."""
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            x = x.contiguous() if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
        added = self._bias(bias)
        return op.product(
            x,
            self.packed,
            self.weight_scale,
            added,
            self.problem.n,
            self.scales,
            self.dtypes,
            self.chip,
            choice,
        )
