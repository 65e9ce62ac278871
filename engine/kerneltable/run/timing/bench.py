"""Every kernel that a device can run, side by side at the same sizes, timed and checked in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Device, Kernel, Problem, Table
from kerneltable.run.faults import reason_of
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.run.packing import construct
from kerneltable.run.timing.clock import Spread, copies_of, microseconds
from kerneltable.select import complete, refusals, select

SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "deepseek-v3": ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)),
    "qwen3-32b": ((10240, 5120), (5120, 25600)),
    "llama-3-70b": ((8192, 8192), (8192, 28672)),
}
"""N x K of the large linears of three models, one tensor-parallel rank each."""

ROWS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)
PEER = "matmul_16bit"
"""The unquantized layer: torch's product in the input's type with the weight widened beforehand."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at one size.

    call      a whole call of the bound kernel, its input quantizer included
    product   the product alone, quantized inputs given; None for a kernel without that stage
    quantizer the input quantizer alone; None for a kernel without that stage
    fp8       it multiplies e4m3 with e4m3, so that the ceiling is the product rate of that type
    chosen    the table takes this kernel for this m
    fault     why there is no time: a refusal, or what the kernel raised; else ""
    """

    kernel: str
    n: int
    k: int
    m: int
    call: Spread | None
    product: Spread | None
    error_over_bound: float
    chosen: bool
    fault: str = ""
    quantizer: Spread | None = None
    fp8: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What all sizes of a run share."""

    table: Table
    device: Device
    problem: Problem
    where: torch.device


def kernels_of(table: Table, device: Device, problem: Problem, only: tuple[str, ...]) -> list[str]:
    """The kernels of the scheme's route that fit the device, in the route's order; slow kinds only when named."""
    route = table.routes.get((problem.scheme, device.platform))
    found = list(dict.fromkeys(step.kernel for step in route.steps)) if route else []
    if only:
        return [name for name in table.kernels if name in only]
    slow = () if device.platform == "cpu" else ("reference", "emulation")
    fits = [name for name in found if table.kernels[name].kind not in slow]
    return [name for name in fits if not _device_refusals(table, name, device, problem)]


def left_out(table: Table, device: Device, problem: Problem, names: Collection[str]) -> dict[str, str]:
    """The other kernels of the scheme's route that no m brings here, and the first reason of each, in order."""
    route = table.routes.get((problem.scheme, device.platform))
    found = {}
    for name in dict.fromkeys(step.kernel for step in route.steps) if route else ():
        reasons = _device_refusals(table, name, device, problem)
        if name not in names:
            found[name] = reasons[0] if reasons else f"kind {table.kernels[name].kind}; ask for it with --kernel {name}"
    return found


def _device_refusals(table: Table, name: str, device: Device, problem: Problem) -> list[str]:
    refused = refusals(table, name, device, problem)
    return [str(r) for r in refused if r.predicate.startswith(("runs_on", "needs"))]


def bench_size(
    bench: Bench, n: int, k: int, rows: tuple[int, ...], names: list[str], seen: Callable[[str], None]
) -> Iterator[Timing]:
    """Time the named kernels, and the unquantized product, at one N x K and every m.

    seen  called with a line about what comes next
    """
    problem = complete(bench.table.schemes[bench.problem.scheme], _sized(bench.problem, n, k))
    copies = copies_of(n * k)
    layers = [_layer(problem, bench.where, seed) for seed in range(copies)]
    for name in names:
        yield from _bench_kernel(bench, problem, bench.table.kernels[name], layers, rows, seen)
    yield from _bench_peer(bench, problem, layers, rows, seen)


def _sized(problem: Problem, n: int, k: int) -> Problem:
    return replace(problem, n=n, k=k, m=None)


def _layer(problem: Problem, where: torch.device, seed: int) -> LayerData:
    return random_layer(problem.at(1), torch.Generator(device=where).manual_seed(seed))


def _bench_kernel(
    bench: Bench,
    problem: Problem,
    row: Kernel,
    layers: list[LayerData],
    rows: tuple[int, ...],
    seen: Callable[[str], None],
) -> Iterator[Timing]:
    bound: list[Any] = []
    fault = ""
    try:
        bound = [construct(bench.table, row.id, problem, layer.tensors) for layer in layers]
    except Exception as error:  # a library that is broken here is left out, and the others are still timed
        fault = reason_of(error)
    for m in rows:
        seen(f"{row.id} {problem.n} x {problem.k} m={m}")
        chosen = select(bench.table, bench.device, problem.at(m)).kernel == row.id
        refused = refusals(bench.table, row.id, bench.device, problem.at(m))
        nothing = Timing(row.id, problem.n, problem.k, m, None, None, math.nan, chosen)
        if fault or refused:
            yield replace(nothing, fault=fault or "; ".join(str(r) for r in refused))
            continue
        try:
            yield _timed(bench, problem, row, nothing, bound, layers[0])
        except Exception as error:
            yield replace(nothing, fault=reason_of(error))


def _timed(bench: Bench, problem: Problem, row: Kernel, timing: Timing, bound: list[Any], layer: LayerData) -> Timing:
    """Time a kernel at one size, its stages apart where it has two, and hold its result against the reference."""
    where = bench.where
    inputs = [_input(problem, timing.m, where, seed) for seed in range(len(bound))]
    call = microseconds([_bind(kernel, x, None) for kernel, x in zip(bound, inputs, strict=True)], where)
    quantizer = product = None
    if all(hasattr(bound[0], stage) for stage in ("quantize", "product")):
        quantizer = microseconds([_bind(kernel.quantize, x) for kernel, x in zip(bound, inputs, strict=True)], where)
        given = [kernel.quantize(x) for kernel, x in zip(bound, inputs, strict=True)]
        product = microseconds([_bind(kernel.product, x) for kernel, x in zip(bound, given, strict=True)], where)
    ratio = _error(bench, problem, row, bound[0](inputs[0], None), layer, inputs[0])
    fp8 = row.kind == "native" and quantizes_input(problem, row.kind)
    return replace(timing, call=call, product=product, error_over_bound=ratio, quantizer=quantizer, fp8=fp8)


def _bind(call: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: call(*arguments)


def _bench_peer(
    bench: Bench, problem: Problem, layers: list[LayerData], rows: tuple[int, ...], seen: Callable[[str], None]
) -> Iterator[Timing]:
    dtype = _dtype(problem.input)
    wide = [layer.tensors["weight"].to(dtype).t() for layer in layers]
    for m in rows:
        seen(f"{PEER} {problem.n} x {problem.k} m={m}")
        inputs = [_input(problem, m, bench.where, seed) for seed in range(len(wide))]
        time = microseconds([_bind(torch.mm, x, w) for x, w in zip(inputs, wide, strict=True)], bench.where)
        yield Timing(PEER, problem.n, problem.k, m, time, None, math.nan, False)


def _error(bench: Bench, problem: Problem, row: Kernel, out: torch.Tensor, layer: LayerData, x: torch.Tensor) -> float:
    ref, magnitude = reference64(problem.at(x.shape[0]), layer.tensors, x, None, quantizes_input(problem, row.kind))
    return error_over_bound(out, ref, magnitude, problem.k, problem.output, row.numerics.accumulator)


def _input(problem: Problem, m: int, where: torch.device, seed: int) -> torch.Tensor:
    generator = torch.Generator(device=where).manual_seed(1000 + seed)
    return torch.randn(m, problem.k, generator=generator, device=where).to(_dtype(problem.input))


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, FORMATS[name].torch_dtype)
    return dtype


def bytes_moved(timing: Timing, problem: Problem) -> int:
    """The fewest bytes of a product: the weight (its codes, for the peer its numbers), input and output once each."""
    wide = FORMATS[problem.input].bits // 8
    size, weight = 1 if timing.product else wide, wide if timing.kernel == PEER else 1
    return (
        timing.n * timing.k * weight
        + timing.m * timing.k * size
        + timing.m * timing.n * FORMATS[problem.output].bits // 8
    )


def operations(timing: Timing) -> int:
    """Multiplications and additions of a product."""
    return 2 * timing.m * timing.n * timing.k


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers; NaN of none."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
