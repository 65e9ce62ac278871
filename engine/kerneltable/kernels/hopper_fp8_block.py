"""hopper_fp8_block: block-scaled W8A8 in CUDA for SM90 (TMA, wgmma); the input is quantized 1x128 at each call.

A few rows are one launch, which quantizes them itself. More are two, as the stages `quantize` and `product` always are,
and one again where the host would take longer for two than the device for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from kerneltable.ops import hopper_fp8_block as op
from kerneltable.ops import hopper_fp8_fused as fused_op
from kerneltable.ops import hopper_fp8_once as once_op
from kerneltable.ops.cuda_chip import CudaChip, needed
from kerneltable.ops.cuda_launch import TensorMap
from kerneltable.ops.cuda_memory import give_back, take
from kerneltable.ops.cuda_quantize import prepare, quantize_block_by_column, quantizer
from kerneltable.ops.cuda_vectors import Launch, aligned, rows_of, width_of
from kerneltable.ops.hopper import map_of, output_of, settle
from kerneltable.ops.hopper_fp8_choice import DEPTH, FEW_ROWS, Choice, Tiled
from kerneltable.ops.hopper_fp8_launch import Launch as ProductLaunch
from kerneltable.ops.hopper_fp8_launch import Place
from kerneltable.ops.stream_memory import Places, memory_of
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.wide_bias import WideBias

if TYPE_CHECKING:
    from kerneltable.model import Problem

ROWS = (1, 16, 32, 64, 128, 256, 1024, 4096)
"""What these m ask for is compiled when a layer is packed; another m may ask for a tile that is compiled then."""

MOST_ROWS = 4096
"""Different m that a layer remembers at a time."""


@dataclass(frozen=True, slots=True)
class Call:
    """What calls with one number of rows need: two launches, the map of the weight, that of its scales and its address
    if copies fetch these, and the memory between the launches."""

    quantize: Launch
    product: ProductLaunch
    weight: TensorMap
    of_factors: TensorMap | None
    factors: tuple[int, ...]
    scratch: op.Scratch


@dataclass(frozen=True, slots=True)
class Once:
    """What calls with some rows need: one launch, and where codes and scales lie meanwhile; `apart` where it cannot be
    one."""

    apart: Call
    places: Places[Place]


@dataclass(frozen=True, slots=True)
class Fused:
    """What calls with a few rows need: one launch, the map of the weight and its address."""

    launch: fused_op.Launch
    weight: TensorMap
    maps: tuple[int]


class Kernel:
    """A bound layer: the weight as in the checkpoint, its scales widened to f32 once."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        chip: CudaChip | None,
        choice: Tiled | None = None,
    ) -> None:
        """Keep the layer and compile what it will launch.

        weight        [n, k] e4m3
        weight_scale  [ceil(n / 128), ceil(k / 128)] f32, bf16, e8m0 or uint8 holding e8m0
        chip          what the table says of the device
        choice        the instance for every m; None: the one that is fastest for each
        errors        KernelUnavailable without a CUDA device, NVRTC or cuda-bindings
        """
        self.choice = choice
        self.chip = needed(chip, "hopper_fp8_block", weight.device)
        self.problem = problem
        self._n, self._k = problem.n, problem.k
        self.weight = aligned(weight)
        self.weight_scale = op.weight_scale_of(widen_scale(weight_scale))
        self._scale_address = self.weight_scale.plain.data_ptr()
        self._empty = output_of(0, problem.n, problem.output, weight.device)
        self._bias = WideBias()
        self._width = width_of(problem.input, DEPTH)
        self._calls: dict[int, Call | Fused | Once] = {}
        quantizer(problem.input, self.chip, weight.device.index or 0, problem.k)
        for m in ROWS if problem.m is None else (problem.m,):
            self._call(m)
        settle(weight.device)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] of the problem's output."""
        m = x.shape[0]
        call = self._calls.get(m) or self._call(m)
        if isinstance(call, Fused):
            return self._in_every_block(call, x, bias)
        if isinstance(call, Call):
            return self._by_stages(call, x, bias)
        place = call.places.now()
        return self._by_stages(call.apart, x, bias) if place is None else self._once(place, m, x, bias)

    def _in_every_block(self, call: Fused, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One launch, whose blocks quantize the few rows each for itself."""
        m, n, k = x.shape[0], self.problem.n, self.problem.k
        x, step = rows_of(x, self._width)
        added, launch = self._bias(bias), call.launch
        out = self._empty.new_empty(m, n)
        addresses = (x.data_ptr(), self._scale_address, 0 if added is None else added.data_ptr(), out.data_ptr())
        launch.function(launch.grid, launch.block, (*addresses, m, n, k, step), call.maps)
        return out

    def _once(self, place: Place, m: int, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One launch, whose blocks quantize the rows together."""
        step = self._k
        if x.data_ptr() % 16 or not x.is_contiguous():
            x, step = rows_of(x, self._width)
        out = self._empty.new_empty(m, self._n)
        place(x, step, self._bias(bias), out)
        return out

    def _by_stages(self, call: Call, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The two stages of a call one after the other, with memory between them that is no tensor."""
        address = x.data_ptr()
        if address % 16 or not x.is_contiguous():
            return self.product(self.quantize(x), bias)
        added = self._bias(bias)
        m, n, k = x.shape[0], self.problem.n, self.problem.k
        first, second, scratch = call.quantize, call.product, call.scratch
        out = self._empty.new_empty(m, n)
        memory = take(scratch.bytes, first.function)
        try:
            codes, parts = (address, memory, memory + scratch.scales), (memory + scratch.parts, memory + scratch.flags)
            first.function(first.grid, first.block, (*codes, m, m, k, k, 1, scratch.padded, parts[1], second.flags))
            addresses = (self._scale_address, 0 if added is None else added.data_ptr(), out.data_ptr())
            of_codes, of_scales = scratch.maps(memory)
            maps = (of_codes.address, call.weight.address, of_scales.address, *call.factors)
            op.start(second, maps, addresses, (m, n, k), parts=parts)
        finally:
            give_back(memory)
        return out

    def _call(self, m: int) -> Call | Fused | Once:
        """What calls with m rows need, kept."""
        if len(self._calls) >= MOST_ROWS:
            self._calls.clear()
        fused = self.choice is None and fused_op.serves(m, self.problem.n, self.problem.k, self.chip)
        found = self._calls[m] = self._fused(m) if fused else self._staged(m)
        return found

    def _fused(self, m: int) -> Fused:
        problem, index = self.problem, self.weight.device.index or 0
        shape, dtypes = (m, problem.n, problem.k), (problem.input, problem.output)
        launch = fused_op.prepare(*shape, *dtypes, self.chip, index)
        weight = map_of(self.weight, "u8", launch.box)
        return Fused(launch, weight, (weight.address,))

    def _staged(self, m: int) -> Call | Once:
        problem, index = self.problem, self.weight.device.index or 0
        dtypes = (problem.input, problem.output)
        launch = op.prepare(m, problem.n, problem.k, *dtypes, self.chip, index, self.choice)
        first = prepare(m, problem.k, problem.input, self.chip, index)
        scratch = op.scratch(m, problem.k, launch)
        factors = map_of(self.weight_scale.apart, "f32", launch.factors) if launch.factors else None
        address = () if factors is None else (factors.address,)
        staged = Call(first, launch, map_of(self.weight, "u8", launch.weight), factors, address, scratch)
        shape = (m, problem.n, problem.k)
        serves = once_op.small(*shape) if self.choice else once_op.serves(*shape, self.chip)
        if launch.divided or not serves:
            return staged
        once = once_op.prepare(*shape, *dtypes, self.chip, index, self.choice)
        memory = memory_of(self.weight.device, once_op.words(problem.k, max(m, FEW_ROWS)))
        make = partial(
            once_op.place, launch=once, product=launch, sizes=shape, scratch=scratch, weight=staged.weight,
            factors=factors, scales=self._scale_address,
        )  # fmt: skip
        return Once(staged, Places(once.function, memory, make))

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first stage: x [m, k] to codes [m, k] e4m3, scales [ceil(k / 128), m padded to 4] f32 and flags that one
        product at a time may use."""
        flags = torch.empty(op.most_flags(self.chip), dtype=torch.int32, device=x.device)
        return (*quantize_block_by_column(x, self.chip, flags), flags)

    def product(
        self,
        quantized: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        bias: torch.Tensor | None = None,
        choice: Choice | None = None,
    ) -> torch.Tensor:
        """The second stage: what `quantize` gave, times the weight; choice None: the layer's own."""
        codes, scales, flags = quantized
        weight, added = (self.weight, self.weight_scale), self._bias(bias)
        dtypes = (self.problem.input, self.problem.output)
        return op.product(codes, scales, flags, *weight, added, dtypes, self.chip, choice=choice or self.choice)
