"""Times of kernels side by side: in turns, each failure its own, nothing kept from one size to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kerneltable.model import Problem
from kerneltable.run.probe import current_device
from kerneltable.run.timing import bench
from kerneltable.run.timing.bench import PEER, Bench, Timing, bench_size
from kerneltable.run.timing.clock import TURNS, Spread, in_turns, microseconds
from kerneltable.table import load_table

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TABLE = load_table()
BENCH = Bench(TABLE, current_device(TABLE), Problem("fp8_block_w8a8", n=1, k=1), CPU)
NAMES = ["cpu_fp8", "reference"]


def breaks(message: str = "broken") -> None:
    raise ValueError(message)


def fails_after(calls: int) -> Callable[[], None]:
    left = iter(range(calls))
    return lambda: None if next(left, None) is not None else breaks()


def runs(log: list[Any]) -> list[Any]:
    """The log with what follows itself once."""
    return [entry for entry, _ in groupby(log)]


def in_turn(entries: list[Any]) -> list[Any]:
    """Entries in the order of TURNS turns, every other one backwards."""
    return [entry for turn in range(TURNS) for entry in entries[:: -1 if turn % 2 else 1]]


def test_entries_are_warmed_first_and_then_take_turns() -> None:
    log: list[str] = []
    entries = [[partial(log.append, name)] * 2 for name in "abc"]
    spreads = in_turns(entries, CPU)
    assert runs(log) == runs([*"abc", *in_turn(list("abc"))])
    assert all(isinstance(found, Spread) and 0 <= found.low <= found.median <= found.high for found in spreads)


def test_a_slice_runs_the_copies_of_its_entry_in_rotation() -> None:
    log: list[int] = []
    in_turns([[partial(log.append, copy) for copy in range(5)]], CPU)
    warm, rotated = log[:2], log[2:]
    assert warm == [0, 1]
    assert rotated[:6] == [4, 0, 1, 2, 3, 4]  # the first one does not count
    assert all(rotated.count(copy) >= TURNS for copy in range(5))


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_an_entry_that_fails_at_once_or_in_a_turn_loses_no_other(calls: int) -> None:
    log: list[str] = []
    first, fails, last = in_turns([[partial(log.append, "a")], [fails_after(calls)], [partial(log.append, "c")]], CPU)
    assert fails == "ValueError: broken"
    assert isinstance(first, Spread)
    assert isinstance(last, Spread)
    assert runs(log) == runs(["a", "c", *in_turn(["a", "c"])])


def test_alone_a_call_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ValueError: broken"):
        microseconds([breaks], CPU)
    assert in_turns([], CPU) == []


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stand-in of torch.cuda replays, each graph under the name that its calls return; a replay takes 30 ms."""
    log: list[str] = []

    class Graph:
        name = ""

        def replay(self) -> None:
            log.append(self.name)

    @contextmanager
    def capture(graph: Graph, stream: object) -> Iterator[None]:
        cuda.capturing = graph
        try:
            yield
        finally:
            cuda.capturing = None

    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 30.0)
    side = SimpleNamespace(waits_for=None, wait_stream=lambda other: setattr(side, "waits_for", other))

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        assert side.waits_for == "current", "inputs may still be on their way"
        yield

    cuda = SimpleNamespace(
        capturing=None, CUDAGraph=Graph, graph=capture, Stream=lambda: side, current_stream=lambda: "current",
        stream=on, synchronize=lambda: None, Event=lambda enable_timing: event,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", cuda)
    return log


def names_graph(name: str) -> None:
    if torch.cuda.capturing is not None:  # type: ignore[attr-defined]
        torch.cuda.capturing.name = name  # type: ignore[attr-defined]


def cannot_be_captured() -> None:
    if torch.cuda.capturing is not None:  # type: ignore[attr-defined]
        breaks("operation not permitted when stream is capturing")


def test_graphs_are_replayed_in_turns_and_one_that_cannot_be_captured_loses_no_other(replays: list[str]) -> None:
    a, fails, b = in_turns([[partial(names_graph, "a")], [cannot_be_captured], [partial(names_graph, "b")]], GPU)
    assert fails == "ValueError: operation not permitted when stream is capturing"
    assert a == b == Spread(1500.0, 1500.0, 1500.0)  # 20 launches a graph
    count = replays.count("a") // TURNS
    turns = [name for name in in_turn(["a", "b"]) for _ in range(count)]  # the first of each slice does not count
    assert count > 1
    assert replays == ["a", "b", *turns]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_goes_on_after_a_capture_that_fails() -> None:
    numbers = [torch.ones(1024, device=GPU) for _ in range(2)]
    works = [partial(torch.neg, x) for x in numbers]
    for _ in range(2):
        first, fails, last = in_turns([works, [x.sum().item for x in numbers], works], GPU)
        assert isinstance(fails, str)
        assert all(isinstance(found, Spread) and found.median > 0 for found in (first, last))


class OneStage:
    """A kernel as the bench binds it: notes each call."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self.log.append(f"{self.name} {len(x)}")
        return torch.zeros(len(x), 64, dtype=x.dtype)


class TwoStages(OneStage):
    """A kernel whose input quantizer and product run apart too."""

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(f"{self.name} quantize {len(x)}")
        return x

    def product(self, x: torch.Tensor) -> None:
        self.log.append(f"{self.name} product {len(x)}")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`kinds` of kernels by name, `log` of their calls, `living`: references to all that were bound."""
    found = SimpleNamespace(kinds={"cpu_fp8": TwoStages, "reference": OneStage}, log=[], living=[])

    def construct(table: object, name: str, *layer: object) -> OneStage:
        made: OneStage = found.kinds[name](name, found.log)
        found.living.append(weakref.ref(made))
        return made

    monkeypatch.setattr(bench, "construct", construct)
    monkeypatch.setattr(bench, "refusals", lambda *asked: [])
    return found


def at_one_size(rows: tuple[int, ...] = (1,)) -> list[Timing]:
    return bench_size(BENCH, 64, 32, rows, NAMES, lambda text: None)


def test_kernels_and_their_stages_take_turns_at_each_m_and_come_back_by_kernel(bound: SimpleNamespace) -> None:
    timings = at_one_size((4, 2))
    assert [(t.kernel, t.m) for t in timings] == [(name, m) for name in (*NAMES, PEER) for m in (4, 2)]
    assert [bool(t.call and t.product and t.quantizer) for t in timings] == [True] * 2 + [False] * 4
    assert all(t.call and not t.fault for t in timings)
    parts = {m: [f"cpu_fp8 {m}", f"cpu_fp8 quantize {m}", f"cpu_fp8 product {m}", f"reference {m}"] for m in (4, 2)}
    given, checked = "cpu_fp8 quantize {}", ["cpu_fp8 {}", "reference {}"]
    assert runs(bound.log) == runs(
        [text.format(m) for m in (4, 2) for text in (given, *parts[m], *in_turn(parts[m]), *checked)]
    )


def test_a_stage_that_fails_is_a_fault_of_its_kernel_alone(
    bound: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoStages, "product", lambda self, x: breaks() if len(x) == 2 else None)
    faults = {(t.kernel, t.m): t.fault for t in at_one_size((1, 2)) if t.fault or not t.call}
    assert faults == {("cpu_fp8", 2): "ValueError: broken"}


def test_memory_that_runs_out_while_kernels_are_bound_is_a_fault_of_one(bound: SimpleNamespace) -> None:
    def full(name: str, log: list[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    bound.kinds["cpu_fp8"] = full
    faulty, *others = at_one_size()
    assert faulty.kernel == "cpu_fp8"
    assert faulty.call is None
    assert faulty.fault == "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
    assert all(t.call and not t.fault for t in others)


@pytest.mark.parametrize("stage", ["__call__", "quantize", "product"])
def test_nothing_bound_is_kept_when_a_size_is_done_even_after_a_failure(
    bound: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    at_one_size()
    monkeypatch.setattr(TwoStages, stage, lambda self, *given: breaks())
    assert any(t.fault for t in at_one_size())
    assert len(bound.living) == 64
    assert not any(kernel() for kernel in bound.living)
