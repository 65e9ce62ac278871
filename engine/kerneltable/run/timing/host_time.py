"""Time until an eager call of a layer returns, without waiting for the device, beside torch.nn.Linear of that shape."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from kerneltable.formats import FORMATS
from kerneltable.model import Problem
from kerneltable.run.layer_data import random_layer
from kerneltable.run.linear import QuantLinear
from kerneltable.run.timing.bench import Bench
from kerneltable.run.timing.clock import Slice, Spread, take_turns
from kerneltable.run.timing.room import making
from kerneltable.run.trial import wait_for
from kerneltable.select import complete, refusals, select

LINEAR = "nn.Linear"
CALLS = 100
"""Calls between two waits for the device: far fewer than its queue of launches takes before a call has to wait."""

WARM_UP, BUDGET_S, FEWEST, MOST = 20, 0.08, 2, 12
"""Calls before the first loop of a layer; seconds and loops of a turn."""

TURNS = 5
"""Of each layer: what else the processor does for a while falls on all of them alike."""

Slices = Callable[[], Slice]
"""Builds and warms what is timed."""


@dataclass(frozen=True, slots=True)
class HostTime:
    """One kernel, or nn.Linear, at one size.

    call    of a whole layer: checks, choice, input quantizer, launches; None when it could not be timed
    chosen  the table takes this kernel for this m
    fault   why there is no time, else ""
    broken  it takes this size and failed
    """

    kernel: str
    n: int
    k: int
    m: int
    call: Spread | None
    chosen: bool = False
    fault: str = ""
    broken: bool = False


def host_times(
    bench: Bench, n: int, k: int, rows: tuple[int, ...], names: list[str], seen: Callable[[str], None]
) -> Iterator[HostTime]:
    """nn.Linear in the input's dtype, then the named kernels, at one N x K and every m; timed in turns.

    seen    called with a line about what comes next
    errors  ProblemError where the random tensors have no room
    """
    scheme = bench.table.schemes[bench.problem.scheme]
    problem = complete(scheme, replace(bench.problem, n=n, k=k, m=None))
    dtype: torch.dtype = getattr(torch, FORMATS[problem.input].torch_dtype)
    with making(n, k, bench.where):
        inputs = {m: torch.randn(m, k, device=bench.where).to(dtype) for m in rows}
        linear = torch.nn.Linear(k, n, bias=False, device=bench.where, dtype=dtype)
    with torch.inference_mode():
        entries: list[tuple[HostTime, Slices]] = [
            (HostTime(LINEAR, n, k, m, None), partial(loops, partial(linear, x), bench.where))
            for m, x in inputs.items()
        ]
        for name in names:
            seen(f"{name} {n} x {k}")
            entries += _of_kernel(bench, problem, name, inputs)
        seen(f"{n} x {k}, {len(entries)} calls in turns")
        found = take_turns([build for _, build in entries], TURNS)
    for (nothing, _), call in zip(entries, found, strict=True):
        if not isinstance(call, str):
            yield replace(nothing, call=call)
        else:
            yield nothing if nothing.fault else replace(nothing, chosen=False, fault=call, broken=True)


def loops(call: Callable[[], object], device: torch.device) -> Slice:
    """Warm a call; a slice is loops of CALLS calls, and gives the microseconds until one returns, of each loop."""
    for _ in range(WARM_UP):
        call()

    def run() -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + BUDGET_S
        while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() < end):
            wait_for(device)
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times.append((time.perf_counter() - start) / CALLS * 1e6)
        wait_for(device)
        return times

    return run


def _of_kernel(
    bench: Bench, problem: Problem, name: str, inputs: dict[int, torch.Tensor]
) -> Iterator[tuple[HostTime, Slices]]:
    """A kernel at every m, and what builds its slices. A library that is broken here is left out when that raises."""

    @lru_cache(maxsize=1)
    def layer() -> QuantLinear:
        return _layer(bench, problem, name)

    for m, x in inputs.items():
        nothing = HostTime(name, problem.n, problem.k, m, None)
        reasons = refusals(bench.table, name, bench.device, problem.at(m))
        if reasons:
            fault = "; ".join(map(str, reasons))
            yield replace(nothing, fault=fault), partial(_refuse, fault)
        else:
            chosen = select(bench.table, bench.device, problem.at(m)).kernel == name
            yield replace(nothing, chosen=chosen), lambda x=x: loops(partial(layer(), x), bench.where)  # type: ignore[misc]


def _refuse(fault: str) -> Slice:
    raise RuntimeError(fault)


def _layer(bench: Bench, problem: Problem, name: str) -> QuantLinear:
    data = random_layer(problem.at(1), torch.Generator(device=bench.where).manual_seed(1))
    return QuantLinear.from_tensors(
        problem.scheme, data.tensors, table=bench.table, input=problem.input, output=problem.output,
        weight_granularity=problem.weight_granularity, weight_block=problem.weight_block,
        input_granularity=problem.input_granularity, input_scaling=problem.input_scaling, kernel=name,
    )  # fmt: skip


def ratio(timing: HostTime, timings: list[HostTime]) -> float:
    """A layer's host time relative to nn.Linear's at the same size; NaN when one is missing."""
    at = (timing.n, timing.k, timing.m)
    beside = [t.call for t in timings if t.kernel == LINEAR and (t.n, t.k, t.m) == at and t.call]
    return timing.call.median / beside[0].median if timing.call and beside else math.nan
