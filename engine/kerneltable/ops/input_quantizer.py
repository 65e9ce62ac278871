"""The input quantizer of a bound layer: Triton's one launch on a GPU that has Triton, else torch's many. Same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from kerneltable.ops.torch_dequantize import Quantized, quantize_input
from kerneltable.ops.torch_fp8 import widen_scale

if TYPE_CHECKING:
    from kerneltable.model import Problem

Quantizer = Callable[[torch.Tensor], Quantized]
TRITON_GROUP = 128


def input_quantizer(
    problem: Problem,
    device: torch.device,
    scale: torch.Tensor | None = None,
    upper: torch.Tensor | None = None,
) -> Quantizer:
    """What turns x [m, k] into codes and scales, chosen once for a layer.

    problem  completed; its input is quantized to e4m3 with float32 scales, so not mxfp8
    device   where the layer lies
    scale    the static input scale, [] or [1], or None
    upper    the largest dynamic scale, [] or [1], or None
    returns  a function of x with the results of torch_dequantize.quantize_input, byte for byte
    """
    wide = None if scale is None else widen_scale(scale).reshape(())
    cap = None if upper is None else widen_scale(upper).reshape(())
    if device.type == "cpu" or find_spec("triton") is None:
        return partial(_by_torch, problem, wide, cap)
    return _by_triton(problem, device, wide, cap) or partial(_by_torch, problem, wide, cap)


def _by_torch(problem: Problem, scale: torch.Tensor | None, upper: torch.Tensor | None, x: torch.Tensor) -> Quantized:
    return quantize_input(problem, x, scale, upper)


def _by_triton(
    problem: Problem, device: torch.device, scale: torch.Tensor | None, upper: torch.Tensor | None
) -> Quantizer | None:
    """The Triton quantizer of this granularity, or None where there is none."""
    from kerneltable.ops import triton_quantize as triton
    from kerneltable.ops.triton_chip import chip_of

    chip = chip_of(device)
    if problem.input_granularity == "block":
        fits = problem.weight_block is not None and problem.weight_block[1] == TRITON_GROUP
        return partial(triton.quantize_block, chip=chip) if fits else None
    if problem.input_scaling == "static":
        return None if scale is None else partial(triton.quantize_static, scale=scale, chip=chip)
    if problem.input_granularity == "token":
        return partial(triton.quantize_token, upper=upper, chip=chip)
    return partial(triton.quantize_tensor, upper=upper, chip=chip) if problem.input_granularity == "tensor" else None
