"""A kernel forced to run one problem after another, each held against float64 and against itself."""

from __future__ import annotations

import math

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Kernel, Problem, Table
from kerneltable.run.checks.conformance_cases import Case
from kerneltable.run.layer_data import EXACT_LIMIT, LayerData, exact_layer, random_layer
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.run.packing import construct
from kerneltable.run.trial import same_bytes


def run_case(table: Table, kernel: Kernel, problem: Problem, where: str, seed: int) -> Case:
    """Run one problem on random and on exact data, twice each, and name what is wrong.

    where  a torch device: "cuda", "cpu", "xpu"
    """
    generator = torch.Generator(device=where).manual_seed(seed)
    faults: list[str] = []
    ratio = math.inf
    try:
        data = random_layer(problem, generator)
        out = run_twice(table, kernel, problem, data, faults)
        ref, magnitude = _reference(kernel, problem, data)
        ratio = error_over_bound(out, ref, magnitude, problem.k, problem.output, kernel.numerics.accumulator)
        if not ratio <= 1:
            faults.append(f"random data: error {ratio:.3g} times its bound")
        del data, out, ref, magnitude
        _check_exact(table, kernel, problem, generator, faults)
    except Exception as error:  # a kernel may raise anything: that is a finding here, not a crash
        faults.append(f"raised {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
    return Case(problem, ratio, tuple(faults))


def _check_exact(table: Table, kernel: Kernel, problem: Problem, generator: torch.Generator, faults: list[str]) -> None:
    """Integer data, thinned out until all sums are exact: the result must be float64's, rounded once."""
    thinning = 1
    while True:
        data = exact_layer(problem, generator, thinning)
        ref, magnitude = _reference(kernel, problem, data)
        if float(magnitude.max()) < EXACT_LIMIT:
            break
        thinning *= 2
    out = run_twice(table, kernel, problem, data, faults)
    wrong = int((out.to(torch.float64) != ref.to(out.dtype).to(torch.float64)).sum())
    if wrong:
        faults.append(f"integer-exact data: {wrong} of {out.numel()} elements differ from float64")


def _reference(kernel: Kernel, problem: Problem, data: LayerData) -> tuple[torch.Tensor, torch.Tensor]:
    return reference64(problem, data.tensors, data.x, data.bias, quantizes_input(problem, kernel.kind))


def run_twice(table: Table, kernel: Kernel, problem: Problem, data: LayerData, faults: list[str]) -> torch.Tensor:
    """The kernel's first result; what is wrong with its form, a second one, or the inputs goes to faults."""
    bound_kernel = construct(table, kernel.id, problem, data.tensors)
    before = data.x.clone()
    results = []
    for _ in range(2):
        _poison(problem, data.x.device)
        results.append(bound_kernel(data.x, data.bias))
    out = results[0]
    dtype = getattr(torch, FORMATS[problem.output].torch_dtype)
    form = (tuple(out.shape), out.dtype, out.is_contiguous(), out.device)
    wanted = ((problem.m, problem.n), dtype, True, data.x.device)
    if form != wanted:
        faults.append(f"result: wanted {wanted}, found {form}")
    if kernel.numerics.deterministic and not same_bytes(*results):
        faults.append("result: two runs differ, the row says deterministic")
    if not same_bytes(before, data.x):
        faults.append("x: changed by the kernel")
    return out


def _poison(problem: Problem, device: torch.device) -> None:
    """Leave NaN in the memory that the allocator is likely to give for the result."""
    dtype = getattr(torch, FORMATS[problem.output].torch_dtype)
    torch.full((problem.m or 0, problem.n), torch.nan, dtype=dtype, device=device)
