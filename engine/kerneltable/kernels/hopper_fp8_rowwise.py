"""hopper_fp8_rowwise: W8A8 in CUDA for SM90; scales per token or tensor, per output channel or tensor.

A call is the launches of the stages `quantize` and `product`; one launch where the host would take longer for two than
the device for both.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from kerneltable.ops import hopper_fp8_once
from kerneltable.ops import hopper_fp8_rowwise as op
from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.cuda_vectors import aligned, rows_of, width_of
from kerneltable.ops.hopper import map_of, output_of, settle
from kerneltable.ops.hopper_fp8_choice import DEPTH, FEW_ROWS, Choice
from kerneltable.ops.hopper_fp8_launch import Launch, Place
from kerneltable.ops.input_quantizer import input_quantizer
from kerneltable.ops.stream_memory import Places, memory_of
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS = (1, 16, 32, 64, 128, 256, 1024, 4096)
"""What these m ask for is compiled when a layer is packed; another m may ask for a tile that is compiled then."""

MOST_ROWS = 4096
"""Different m that a layer remembers at a time."""


class Kernel:
    """A bound layer: the weight as in the checkpoint; one scale a tensor is expanded to a vector, which changes no
    number."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
        chip: CudaChip | None,
    ) -> None:
        """Keep the layer and compile what it will launch.

        weight                       [n, k] e4m3
        weight_scale                 [] or [1], [n] or [n, 1]
        input_scale, input_scale_ub  [] or [1], or None
        chip                         what the table says of the device
        errors                       KernelUnavailable without a CUDA device, NVRTC or cuda-bindings
        """
        self.chip = needed(chip, "hopper_fp8_rowwise", weight.device)
        self.problem = problem
        self._n, self._k = problem.n, problem.k
        self.weight = aligned(weight)
        self.weight_scale = aligned(widen_scale(weight_scale).reshape(-1).expand(problem.n))
        self._quantize = input_quantizer(problem, weight.device, input_scale, input_scale_ub, chip=self.chip)
        self._bias = WideBias()
        static = problem.input_scaling == "static"
        self._common = not static and problem.input_granularity == "tensor"
        limits = (input_scale if static else None, None if static else input_scale_ub)
        self._limits = tuple(None if one is None else widen_scale(one).reshape(()) for one in limits)
        self._limit_addresses = tuple(0 if one is None else one.data_ptr() for one in self._limits)
        self._empty = output_of(0, problem.n, problem.output, weight.device)
        self._width = width_of(problem.input, DEPTH)
        self._calls: dict[int, Places[Place] | None] = {}
        for m in ROWS if problem.m is None else (problem.m,):
            dtypes = (problem.input, problem.output)
            op.prepare(m, problem.n, problem.k, *dtypes, self.chip, weight.device.index or 0)
            self._call(m)
        settle(weight.device)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage: x [m, k] to codes [m, k] e4m3 and scales [m, 1] f32, or one for all rows."""
        return self._quantize(x)

    def product(
        self,
        quantized: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor | None = None,
        choice: Choice | None = None,
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight, plus bias [n] or None."""
        weight, added = (self.weight, self.weight_scale), self._bias(bias)
        dtypes = (self.problem.input, self.problem.output)
        return op.product(*quantized, *weight, added, dtypes, self.chip, choice=choice)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        m = x.shape[0]
        try:
            places = self._calls[m]
        except KeyError:  # also where another thread emptied it meanwhile
            places = self._call(m)
        place = None if places is None else places.now()
        if place is None:
            return self.product(self.quantize(x), bias)
        step = self._k
        if x.data_ptr() % 16 or not x.is_contiguous():
            x, step = rows_of(x, self._width)
        out = self._empty.new_empty(m, self._n)
        place(x, step, self._bias(bias), out)
        return out

    def _call(self, m: int) -> Places[Place] | None:
        """What calls with m rows need where they are one launch, kept; None where they are two."""
        problem, found = self.problem, None
        if once_op.serves(m, problem.n, problem.k):
            dtypes, index = (problem.input, problem.output), self.weight.device.index or 0
            launch = once_op.prepare(m, problem.n, problem.k, *dtypes, self.chip, index)
            if not launch.divided:
                found = self._places(m, launch)
        if len(self._calls) >= MOST_ROWS:
            self._calls.clear()
        self._calls[m] = found
        return found

    def _places(self, m: int, launch: Launch) -> Places[Place]:
        n, k = self.problem.n, self.problem.k
        make = partial(
            once_op.place, launch=launch, sizes=(m, n, k), weight=map_of(self.weight, "u8", launch.weight),
            fixed=self._limit_addresses, scales=self.weight_scale.data_ptr(), common=int(self._common and m > 1),
        )  # fmt: skip
        memory = memory_of(self.weight.device, hopper_fp8_once.words(k, max(m, FEW_ROWS)))
        return Places(launch.function, memory, make)
