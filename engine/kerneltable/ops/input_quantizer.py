"""The input quantizer of a bound layer: that of csrc/cuda where it can be had, else Triton's, else torch's. Same bytes.

None of these is a reason to refuse: without NVRTC a layer runs with Triton's, and `source_of` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.formats import FORMATS
from kerneltable.ops.torch_dequantize import Quantized, quantize_input
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.ops.torch_scaled_mm import pad_rows

if TYPE_CHECKING:
    from kerneltable.model import Problem
    from kerneltable.ops.cuda_chip import CudaChip

Quantizer = Callable[[torch.Tensor], Quantized]
GROUP = 128


def input_quantizer(
    problem: Problem,
    device: torch.device,
    scale: torch.Tensor | None = None,
    upper: torch.Tensor | None = None,
    *,
    chip: CudaChip | None = None,
    by_column: bool = False,
) -> Quantizer:
    """What turns x [m, k] into codes and scales, chosen once for a layer.

    problem    completed; its input is quantized to e4m3
    device     where the layer lies
    scale      the static input scale, [] or [1], or None
    upper      the largest dynamic scale, [] or [1], or None
    chip       what the table says of the device; None: nothing is launched from csrc/cuda
    by_column  for 1x128 groups: True gives what torch_scaled_mm.pad_rows makes of the results
    returns    a function of x with the results of torch_dequantize.quantize_input, byte for byte
    """
    wide = None if scale is None else widen_scale(scale).reshape(())
    cap = None if upper is None else widen_scale(upper).reshape(())
    if chip is not None and device.type == "cuda":
        try:
            found = _by_cuda(problem, device, wide, cap, chip=chip, by_column=by_column)
        except KernelUnavailable:  # no NVRTC, or it may not compile: the others need neither
            found = None
        if found is not None:
            return found
    simple = _simple(problem, device, wide, cap, frozenset() if chip is None else chip.features)
    return partial(_filled_up, simple) if by_column else simple


def source_of(quantizer: Quantizer) -> str:
    """Whose quantizer it is: "cuda", "triton" or "torch"."""
    while isinstance(quantizer, partial) and quantizer.func is _filled_up:
        (quantizer,) = quantizer.args
    module = getattr(quantizer, "func", type(quantizer)).__module__.rpartition(".")[2]
    return next((source for source in ("cuda", "triton") if module.startswith(source)), "torch")


def _filled_up(quantize: Quantizer, x: torch.Tensor) -> Quantized:
    return pad_rows(*quantize(x))


def _simple(
    problem: Problem, device: torch.device, scale: torch.Tensor | None, upper: torch.Tensor | None,
    features: frozenset[str],
) -> Quantizer:  # fmt: skip
    torch_own = partial(_by_torch, problem, scale, upper)
    if device.type == "cpu" or find_spec("triton") is None:
        return torch_own
    return _by_triton(problem, device, scale, upper, features) or torch_own


def _by_torch(problem: Problem, scale: torch.Tensor | None, upper: torch.Tensor | None, x: torch.Tensor) -> Quantized:
    return quantize_input(problem, x, scale, upper)


def _by_cuda(
    problem: Problem, device: torch.device, scale: torch.Tensor | None, upper: torch.Tensor | None,
    *, chip: CudaChip, by_column: bool,
) -> Quantizer | None:  # fmt: skip
    """The quantizer of csrc/cuda of this granularity, or None where there is none.

    errors   KernelUnavailable when its code cannot be compiled or loaded
    """
    if "mma_fp8" not in chip.features:  # where the tensor cores take e4m3, a conversion to it exists
        return None
    from kerneltable.ops.cuda_quantize import MX_BLOCK, GroupQuantizer
    from kerneltable.ops.cuda_quantize_rows import TensorQuantizer, TokenQuantizer
    from kerneltable.ops.cuda_vectors import Place

    place = Place(problem.k, getattr(torch, FORMATS[problem.input].torch_dtype), chip, device)
    if problem.input_granularity == "block":
        wanted = MX_BLOCK if problem.scheme == "mxfp8" else GROUP
        fits = problem.weight_block is not None and problem.weight_block[1] == wanted
        return GroupQuantizer(place, wanted, by_column=by_column) if fits else None
    if problem.input_scaling == "static":
        return None if scale is None else TensorQuantizer(place, scale, None)
    if problem.input_granularity == "token":
        return TokenQuantizer(place, upper)
    return TensorQuantizer(place, None, upper) if problem.input_granularity == "tensor" else None


def _by_triton(
    problem: Problem, device: torch.device, scale: torch.Tensor | None, upper: torch.Tensor | None,
    features: frozenset[str],
) -> Quantizer | None:  # fmt: skip
    """The Triton quantizer of this granularity, or None where there is none."""
    if problem.scheme == "mxfp8":
        return None
    from kerneltable.ops import triton_quantize as triton
    from kerneltable.ops.triton_chip import chip_of

    chip = chip_of(device, features)
    if problem.input_granularity == "block":
        fits = problem.weight_block is not None and problem.weight_block[1] == GROUP
        return partial(triton.quantize_block, chip=chip) if fits else None
    if problem.input_scaling == "static":
        return None if scale is None else partial(triton.quantize_static, scale=scale, chip=chip)
    if problem.input_granularity == "token":
        return partial(triton.quantize_token, upper=upper, chip=chip)
    return partial(triton.quantize_tensor, upper=upper, chip=chip) if problem.input_granularity == "tensor" else None
