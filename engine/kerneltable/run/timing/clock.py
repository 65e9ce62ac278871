"""Times of short calls: CUDA graphs over rotating copies on a GPU, a clock around each call on a CPU; in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch

from kerneltable.run.faults import reason_of

T = TypeVar("T")
Call = Callable[[], object]
Slice = Callable[[], list[float]]
"""Runs what is timed for one turn: microseconds a call, of each replay or call that counts."""

ROTATED_BYTES = 512 * 2**20
"""Weights that take turns hold at least this: ten times the L2 cache of an H200, so that each is read from memory.
Where a kernel asks the cache to evict its weight first, a part of them stays there until its turn: with half as much,
small ones gained up to 8 % so, and next to nothing with 2 GiB."""

MOST_COPIES = 16
TURNS = 4
"""Slices of each entry, every other turn in the opposite order: a clock that drifts with power and heat does so under
all entries alike. Always in the same order, what comes behind something light gained up to 5 %."""

LAUNCHES_IN_A_GRAPH = 20
REPLAYS = 15
BUDGET_S = 0.05
HOST_CALLS = 200
HOST_BUDGET_S = 0.2


@dataclass(frozen=True, slots=True)
class Spread:
    """Microseconds a call: the median, and the 10th and 90th percentile of what was measured."""

    median: float
    low: float
    high: float


def copies_of(size: int, rotated: int = ROTATED_BYTES) -> int:
    """How many copies of `size` bytes take turns: enough to outgrow the caches, 2 at least."""
    return max(2, min(MOST_COPIES, -(-rotated // max(size, 1))))


def attempted(make: Callable[[], T]) -> T | str:
    """What it returns, or in one line what it raised; the error itself would keep alive the tensors of its frames."""
    try:
        return make()
    except Exception as error:  # whatever a library that is broken here raises
        return reason_of(error)


def microseconds(calls: Sequence[Call], device: torch.device) -> Spread:
    """Time calls that do the same work on different data, as `in_turns` does, with nothing beside them.

    errors    RuntimeError with what a call raised
    """
    (found,) = in_turns([calls], device)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def in_turns(entries: Sequence[Sequence[Call]], device: torch.device) -> list[Spread | str]:
    """Time entries side by side: all are built and warmed first, then each gets a slice in every one of TURNS rounds.

    entries  of calls that do the same work on different data: each works on tensors of its own, and together those of
             an entry outgrow the caches
    device   a GPU: an entry is captured into one CUDA graph, whose replays are timed with events, so that no host time
             counts; else each call is timed on the host
    returns  for each entry the times of all its slices, or in one line what it raised; that stops no other entry
    """
    build = _on_gpu if device.type == "cuda" else _on_host
    return take_turns([partial(build, calls) for calls in entries], TURNS)


def take_turns(builds: Sequence[Callable[[], Slice]], turns: int) -> list[Spread | str]:
    """Build and warm what is timed, then run a slice of each in every turn, backwards in every other one.

    returns  for each the times of all its slices, or in one line what it raised; that stops no other
    """
    slices = [attempted(build) for build in builds]
    times: list[list[float]] = [[] for _ in builds]
    for turn in range(turns):
        for place in range(len(slices))[:: 1 if turn % 2 == 0 else -1]:
            run = slices[place]
            found = run if isinstance(run, str) else attempted(run)
            if isinstance(found, str):
                slices[place] = found
            else:
                times[place] += found
    return [run if isinstance(run, str) else _spread(found) for run, found in zip(slices, times, strict=True)]


def _on_gpu(calls: Sequence[Call]) -> Slice:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    rounds = max(1, LAUNCHES_IN_A_GRAPH // len(calls))
    stream.wait_stream(torch.cuda.current_stream())  # inputs may still be on their way
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for call in calls:
                    call()
    (first,) = _replay_times(graph, 1)
    count = max(5, min(REPLAYS, int(BUDGET_S * 1e3 / max(first, 1e-3))))
    return partial(_graph_slice, graph, rounds * len(calls), -(-count // TURNS))


def _graph_slice(graph: torch.cuda.CUDAGraph, launches: int, count: int) -> list[float]:
    return [elapsed * 1e3 / launches for elapsed in _replay_times(graph, 1 + count)[1:]]


def _replay_times(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    """Milliseconds of each replay."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(marks)]


def _on_host(calls: Sequence[Call]) -> Slice:
    for call in calls[:2]:
        call()
    return partial(_host_slice, calls)


def _host_slice(calls: Sequence[Call]) -> list[float]:
    calls[-1]()
    times: list[float] = []
    end = time.perf_counter() + HOST_BUDGET_S / TURNS
    while not times or (time.perf_counter() < end and len(times) < HOST_CALLS / TURNS):
        for call in calls:
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
    return times


def _spread(times: list[float]) -> Spread:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Spread(ordered[len(ordered) // 2], ordered[round(last * 0.1)], ordered[round(last * 0.9)])


def memory_rate(device: torch.device) -> float:
    """Bytes a second that the memory gives: the best of passes over a large tensor that read, or read and write, it.

    Larger than caches: of 128 MiB a server's last one gave 29 to 39 GB/s, from run to run, where memory gave 32. There
    a product with a vector reads faster than a maximum of all numbers.
    """
    size, dtype = (2**31, torch.int32) if device.type == "cuda" else (2**30, torch.float32)
    source = torch.ones(size // 4, dtype=dtype, device=device)
    target = torch.empty_like(source)
    written = min(microseconds([lambda: torch.neg(source, out=target)], device).low for _ in range(3))
    reads = [partial(torch.amax, source)]
    if device.type == "cpu":
        reads.append(partial(torch.mv, source.view(-1, 2**14), torch.ones(2**14)))
    read = min(microseconds([call], device).low for call in reads for _ in range(3))
    return max(2 * size / written, size / read) * 1e6


def fp8_product_rate(device: torch.device) -> float | None:
    """Multiplications and additions a second of a large product of e4m3 numbers; None where torch has none."""
    if device.type != "cuda":
        return None
    size = 8192
    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    try:
        multiply()
    except (RuntimeError, NotImplementedError):  # a chip without FP8 units
        return None
    return 2 * size**3 / microseconds([multiply], device).low * 1e6


def product_rate(device: torch.device) -> float:
    """Multiplications and additions a second of a large matrix product in bf16, on a CPU the better of it and f32."""
    size, dtypes = (8192, (torch.bfloat16,)) if device.type == "cuda" else (1024, (torch.bfloat16, torch.float32))
    best = 0.0
    for dtype in dtypes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / microseconds([partial(torch.mm, a, b)], device).low * 1e6)
    return best
