"""Made-up layers for checks: random ones, and integer-exact ones whose result every kernel must give bit by bit.

Every tensor lies in front of bytes of 0xff, which is NaN in each format, and so does each row of x: a kernel that reads
past an end gives NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Problem
from kerneltable.ops.torch_fp8 import round_to_e4m3

GUARD_BYTES = 4096
GUARD_COLUMNS = 16
CODE_SPREAD = 112.0
"""Standard deviation of random weight codes: the largest of many lies near 448."""

EXACT_PEAK = 7
"""Largest |x| of exact data: 7 / 448 is 2^-6, so the quantizers give powers of two and codes without rounding."""

EXACT_LIMIT = 2**11
"""Sums below this are exact in 14 bits, the least that matrix units keep."""


@dataclass(frozen=True, slots=True)
class LayerData:
    """x [m, k] with a row stride above k, the layer's tensors under the scheme's names, and bias [n] or None."""

    x: torch.Tensor
    tensors: dict[str, torch.Tensor]
    bias: torch.Tensor | None


def random_layer(problem: Problem, generator: torch.Generator) -> LayerData:
    """Normal data, one power of two a row; results are of order one.

    problem    completed, m known; bias says whether there is one
    generator  on the device where the tensors shall be
    """
    m, n, k = _sizes(problem)
    device = generator.device
    codes = round_to_e4m3(torch.randn(n, k, generator=generator, device=device) * CODE_SPREAD)
    shape = scale_shape(problem)
    jitter = 0.5 + torch.rand(shape, generator=generator, device=device)
    scale = _stored_scale(jitter / (CODE_SPREAD * k**0.5), problem)
    loudness = torch.randint(-3, 4, (m, 1), generator=generator, device=device).float()
    x = torch.randn(m, k, generator=generator, device=device) * torch.exp2(loudness)
    tensors = {"weight": _guarded(codes), "weight_scale": _guarded(scale)}
    if problem.input_scaling == "static":
        tensors["input_scale"] = torch.full((1,), 8.0 / FORMATS["e4m3"].largest, device=device)
    elif problem.input_granularity in ("token", "tensor") and (m + n + k) % 3 == 0:
        tensors["input_scale_ub"] = torch.full((1,), 2.0 / FORMATS["e4m3"].largest, device=device)
    bias = torch.randn(n, generator=generator, device=device) if problem.bias else None
    return LayerData(_guarded_rows(x.to(_dtype(problem.input))), tensors, bias)


def exact_layer(problem: Problem, generator: torch.Generator, thinning: int = 1) -> LayerData:
    """Small integers and powers of two: all sums are exact if S stays below EXACT_LIMIT; thin out further if not.

    Every input group holds one element of +-7, so that its scale is 2^-6.
    """
    m, n, k = _sizes(problem)
    device = generator.device
    group = problem.weight_block[1] if problem.input_granularity == "block" and problem.weight_block else k
    x = _sparse_integers((m, k), 3, min(1.0, 200.0 / k), generator)
    x[:, ::group] = EXACT_PEAK * _signs((m, -(-k // group)), generator)
    weighed = EXACT_PEAK * -(-k // group) + 2.0 * min(k, 200)
    w = _sparse_integers((n, k), 2, min(1.0, EXACT_LIMIT / (4.0 * weighed * thinning)), generator)
    scale = torch.exp2(torch.randint(0, 2, scale_shape(problem), generator=generator, device=device).float())
    tensors = {"weight": _guarded(round_to_e4m3(w)), "weight_scale": _guarded(_stored_scale(scale, problem))}
    if problem.input_scaling == "static":
        tensors["input_scale"] = torch.full((1,), EXACT_PEAK / FORMATS["e4m3"].largest, device=device)
    bias = _sparse_integers((n,), 8, 1.0, generator) if problem.bias else None
    return LayerData(_guarded_rows(x.to(_dtype(problem.input))), tensors, bias)


def _sizes(problem: Problem) -> tuple[int, int, int]:
    if problem.m is None:
        raise ValueError("layer data: the problem must say m")
    return problem.m, problem.n, problem.k


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, FORMATS[name].torch_dtype)
    return dtype


def scale_shape(problem: Problem) -> tuple[int, ...]:
    """The shape of the weight scales of a completed problem."""
    if problem.weight_granularity == "tensor":
        return ()
    if problem.weight_granularity == "channel" or problem.weight_block is None:
        return (problem.n, 1)
    rows, columns = problem.weight_block
    return (-(-problem.n // rows), -(-problem.k // columns))


def _stored_scale(scale: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Scales in the problem's format; e8m0 takes the exponent's bits, which rounds down to a power of two."""
    if problem.weight_scale == "e8m0":
        return (scale.view(torch.int32) >> 23).to(torch.uint8).view(torch.float8_e8m0fnu)
    return scale.to(torch.bfloat16) if problem.weight_scale == "bf16" else scale


def _sparse_integers(shape: tuple[int, ...], largest: int, density: float, generator: torch.Generator) -> torch.Tensor:
    """Float32 integers of -largest to largest; about 1 - density of them are made 0."""
    device = generator.device
    values = torch.randint(-largest, largest + 1, shape, generator=generator, device=device).float()
    return values * (torch.rand(shape, generator=generator, device=device) < density)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator, device=generator.device).float() - 1.0


def _guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy with NaN bytes behind it."""
    size = tensor.numel() * tensor.element_size()
    buffer = torch.full((size + GUARD_BYTES,), 0xFF, dtype=torch.uint8, device=tensor.device)
    copy = buffer[:size].view(tensor.dtype).view(tensor.shape)
    copy.view(torch.uint8).copy_(tensor.contiguous().view(torch.uint8)) if tensor.dim() else copy.copy_(tensor)
    return copy


def _guarded_rows(x: torch.Tensor) -> torch.Tensor:
    """A copy with NaN columns to the right of every row."""
    m, k = x.shape
    wide = torch.full((m + 1, k + GUARD_COLUMNS), torch.nan, dtype=x.dtype, device=x.device)
    wide[:m, :k] = x
    return wide[:m, :k]
