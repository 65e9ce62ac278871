"""Kernels at sizes beyond 2^31 elements, where offsets of 32 bits turn round: rows from all over are checked.

One case has such an output, one such an input, one such a weight. Float64 for all of it would take minutes, so the rows
held against the reference are the first and last ones, those around every power of two at which an offset in elements
or bytes overflows, and random ones; that no NaN of the poisoned memory is left is checked everywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Kernel, Problem, Table
from kerneltable.run.checks.conformance import run_twice
from kerneltable.run.checks.conformance_cases import Case
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.run.trial import give_back_memory

SHAPES = ((70_000, 32_768, 512), (1_800_000, 256, 1_280), (16, 300_032, 8_192))
"""(m, n, k) with m * n, m * k and n * k beyond 2^31."""

OVERFLOWS = (2**29, 2**30, 2**31, 2**32)
"""Elements before which an offset leaves 31 or 32 bits: counted in elements, or in bytes of 1, 2 or 4 each."""

ENDS, RANDOM = 4, 16
"""Rows checked at either end, and at random places."""

BYTES_AN_ELEMENT = 28
"""Memory wanted for each element of the largest tensor: it and its copies in float32 while it is made and quantized."""


def lack_of_memory(problem: Problem, free: int) -> str | None:
    """Why a problem cannot be run with so many free bytes; None when it can."""
    m = problem.m or 0
    wanted = BYTES_AN_ELEMENT * max(m * problem.n, m * problem.k, problem.n * problem.k)
    if free >= wanted:
        return None
    return f"beyond 2^31 elements: wants {wanted / 2**30:.0f} GiB of free memory, found {free / 2**30:.0f}"


def free_memory(where: torch.device) -> int:
    """Bytes that a GPU has to give, after what nobody uses was given back."""
    give_back_memory(where)
    free, _ = torch.get_device_module(where).mem_get_info(where)
    return int(free)


def run_large(
    table: Table, kernel: Kernel, problem: Problem, where: str, seed: int, overflows: tuple[int, ...] = OVERFLOWS
) -> Case:
    """Run one large problem twice on random data, and name what is wrong.

    where      a torch device: "cuda", "xpu"
    overflows  elements whose neighbourhood is checked, in each tensor
    """
    faults: list[str] = []
    ratio = math.inf
    try:
        data = random_layer(problem, torch.Generator(device=where).manual_seed(seed))
        out = run_twice(table, kernel, problem, data, faults)
        ratio = _error(kernel, problem, data, out, overflows)
        if not ratio <= 1:
            faults.append(f"random data: error {ratio:.3g} times its bound")
        unwritten = sum(int(torch.count_nonzero(part.isnan())) for part in _parts(out))
        if unwritten:
            faults.append(f"result: {unwritten} of {out.numel()} elements are NaN")
    except Exception as error:  # a kernel may raise anything: that is a finding here, not a crash
        faults.append(f"raised {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
    return Case(problem, ratio, tuple(faults), large=True)


def rows_to_check(problem: Problem, overflows: tuple[int, ...] = OVERFLOWS, seed: int = 0) -> list[int]:
    """Rows of x and of the result from the first to the last, ascending.

    Around each overflow the row that holds it and its neighbours, in x and in the result.
    """
    m = problem.m or 0
    rows = {*range(min(ENDS, m)), *range(max(0, m - ENDS), m)}
    for place in overflows:
        for width in (problem.n, problem.k):
            rows.update(range(place // width - 1, place // width + 2))
    rows.update(random.Random(seed).sample(range(m), min(RANDOM, m)))
    return sorted(row for row in rows if 0 <= row < m)


def _error(kernel: Kernel, problem: Problem, data: LayerData, out: torch.Tensor, overflows: tuple[int, ...]) -> float:
    """The largest error over its bound in the rows to check, all n outputs of each."""
    dtype = getattr(torch, FORMATS[problem.output].torch_dtype)
    if tuple(out.shape) != (problem.m, problem.n) or out.dtype is not dtype:
        return math.inf
    rows = rows_to_check(problem, overflows)
    if problem.input_granularity == "tensor" and problem.input_scaling == "dynamic":
        rows.append(_loudest(data.x))  # so that the scale of these rows is that of all
    given, found = (torch.stack([tensor[row] for row in rows]) for tensor in (data.x, out))
    ref, magnitude = reference64(problem, data.tensors, given, data.bias, quantizes_input(problem, kernel.kind))
    return error_over_bound(found, ref, magnitude, problem.k, problem.output, kernel.numerics.accumulator)


def _loudest(x: torch.Tensor) -> int:
    """The row that holds the largest magnitude."""
    return int(torch.cat([part.abs().amax(dim=1) for part in _parts(x)]).argmax())


def _parts(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows of a matrix, about 2^28 elements at a time."""
    step = max(1, 2**28 // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        yield matrix[first : first + step]
