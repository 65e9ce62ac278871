"""Every kernel that a device can run, side by side at the same sizes, timed in turns and checked in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Device, Kernel, Problem, Table
from kerneltable.ops.torch_mx import MX_BLOCK
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.run.packing import construct
from kerneltable.run.timing.clock import Call, Spread, attempted, copies_of, in_turns
from kerneltable.run.timing.room import making
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


@dataclass(frozen=True, slots=True)
class _Size:
    """What all m of one N x K share.

    layer   the first of the copies, against whose reference each result is held
    inputs  [largest m, k], one a copy
    bound   by name, the peer's last: the kernel bound to each copy, or why it is not
    """

    bench: Bench
    problem: Problem
    layer: LayerData
    inputs: list[torch.Tensor]
    bound: dict[str, list[Any] | str]


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
) -> list[Timing]:
    """Time the named kernels, and the unquantized product, at one N x K: all of them in turns, one m after the other.

    seen     called with a line about what comes next
    returns  a kernel's timings together, in the order of the names, the unquantized product's last
    errors   ProblemError where the random tensors have no room
    """
    problem = complete(bench.table.schemes[bench.problem.scheme], replace(bench.problem, n=n, k=k, m=None))
    with making(n, k, bench.where):
        layers = [_layer(problem, bench.where, seed) for seed in range(copies_of(n * k))]
        inputs = [_input(problem, max(rows), bench.where, seed) for seed in range(len(layers))]
    bound: dict[str, list[Any] | str] = {}
    for name in (*names, PEER):
        seen(f"{name} {n} x {k}")
        bound[name] = attempted(partial(_bind, bench.table, problem, name, layers))
    size = _Size(bench, problem, layers[0], inputs, bound)
    timings: list[Timing] = []
    for m in rows:
        seen(f"{n} x {k} m={m}, kernels in turns")
        timings += _bench_rows(size, m)
    order = list(bound)
    return sorted(timings, key=lambda timing: order.index(timing.kernel))


def _layer(problem: Problem, where: torch.device, seed: int) -> LayerData:
    return random_layer(problem.at(1), torch.Generator(device=where).manual_seed(seed))


def _bind(table: Table, problem: Problem, name: str, layers: list[LayerData]) -> list[Any]:
    if name != PEER:
        return [construct(table, name, problem, layer.tensors) for layer in layers]
    return [_unquantized(layer.tensors["weight"].to(_dtype(problem.input)).t()) for layer in layers]


def _unquantized(weight: torch.Tensor) -> Callable[[torch.Tensor, None], torch.Tensor]:
    return lambda x, bias: torch.mm(x, weight)


def _bench_rows(size: _Size, m: int) -> Iterator[Timing]:
    """Time everything that takes this m in turns, then hold each result against the reference."""
    bench, problem = size.bench, size.problem.at(m)
    inputs = [x[:m] for x in size.inputs]
    stages = {name: _stages(bench, problem, name, bound, inputs) for name, bound in size.bound.items()}
    entries = {
        (name, stage): calls
        for name, found in stages.items() if not isinstance(found, str)
        for stage, calls in found.items()
    }  # fmt: skip
    spreads = dict(zip(entries, in_turns(list(entries.values()), bench.where), strict=True))
    chosen = select(bench.table, bench.device, problem).kernel
    for name, found in stages.items():
        timing = Timing(name, problem.n, problem.k, m, None, None, math.nan, name == chosen)
        if isinstance(found, str):
            yield replace(timing, fault=found)
        else:
            yield _checked(size, timing, {stage: spreads[name, stage] for stage in found}, inputs[0])


def _stages(
    bench: Bench, problem: Problem, name: str, bound: list[Any] | str, inputs: list[torch.Tensor]
) -> dict[str, list[Call]] | str:
    """What of a kernel is timed, under the names that a Timing has for it, or why nothing is."""
    if isinstance(bound, str):
        return bound
    refused = [] if name == PEER else refusals(bench.table, name, bench.device, problem)
    return "; ".join(map(str, refused)) or attempted(partial(_calls, bound, inputs))


def _calls(bound: list[Any], inputs: list[torch.Tensor]) -> dict[str, list[Call]]:
    """A call a copy: of the whole kernel, and of its stages where it has two."""
    pairs = list(zip(bound, inputs, strict=True))
    found: dict[str, list[Call]] = {"call": [partial(kernel, x, None) for kernel, x in pairs]}
    if all(hasattr(bound[0], stage) for stage in ("quantize", "product")):
        found["quantizer"] = [partial(kernel.quantize, x) for kernel, x in pairs]
        found["product"] = [partial(kernel.product, kernel.quantize(x)) for kernel, x in pairs]
    return found


def _checked(size: _Size, timing: Timing, spreads: dict[str, Spread | str], x: torch.Tensor) -> Timing:
    """The timing with its times, and its error unless it is the peer's; with a fault alone when anything failed."""
    faults = [found for found in spreads.values() if isinstance(found, str)]
    if faults:
        return replace(timing, fault=faults[0])
    times = {stage: found for stage, found in spreads.items() if isinstance(found, Spread)}
    timed = replace(timing, call=times["call"], product=times.get("product"), quantizer=times.get("quantizer"))
    row = size.bench.table.kernels.get(timing.kernel)
    if row is None:
        return timed
    ratio = attempted(partial(_error, size, row, x))
    if isinstance(ratio, str):
        return replace(timing, fault=ratio)
    fp8 = row.kind == "native" and quantizes_input(size.problem, row.kind)
    return replace(timed, error_over_bound=ratio, fp8=fp8)


def _error(size: _Size, row: Kernel, x: torch.Tensor) -> float:
    problem, bound = size.problem, size.bound[row.id]
    assert not isinstance(bound, str)
    out = bound[0](x, None)
    ref, magnitude = reference64(problem.at(len(x)), size.layer.tensors, x, None, quantizes_input(problem, row.kind))
    return error_over_bound(out, ref, magnitude, problem.k, problem.output, row.numerics.accumulator)


def _input(problem: Problem, m: int, where: torch.device, seed: int) -> torch.Tensor:
    generator = torch.Generator(device=where).manual_seed(1000 + seed)
    return torch.randn(m, problem.k, generator=generator, device=where).to(_dtype(problem.input))


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, FORMATS[name].torch_dtype)
    return dtype


def bytes_moved(timing: Timing, problem: Problem) -> int:
    """The fewest bytes of a product: the weight (its codes, for the peer its numbers), input and output once each.

    Of scales, those that count: a byte for 32 codes. Others are less than a thousandth of the weight.
    """
    wide = FORMATS[problem.input].bits // 8
    size, weight = 1 if timing.product else wide, wide if timing.kernel == PEER else 1
    scales = timing.n * -(-timing.k // MX_BLOCK) if problem.scheme == "mxfp8" and timing.kernel != PEER else 0
    return (
        timing.n * timing.k * weight
        + scales
        + timing.m * timing.k * size
        + timing.m * timing.n * FORMATS[problem.output].bits // 8
    )


def operations(timing: Timing) -> int:
    """Multiplications and additions of a product."""
    return 2 * timing.m * timing.n * timing.k


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers; NaN of none."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
