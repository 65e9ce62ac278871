"""What holds for every launch whose blocks quantize the input together: tests of them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from hopper_layers import assert_same_bits
from stress import difference

from kerneltable.ops.hopper_fp8_once import COUNTER_BYTES
from kerneltable.ops.stream_memory import StreamMemory

PAUSE = 20_000
"""Cycles before an input is written: longer than a launch takes."""


def by_stages(kernel: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return kernel.product(kernel.quantize(x), bias)


def assert_zero_afterwards(monkeypatch: pytest.MonkeyPatch, module: Any) -> Iterator[None]:
    """The body of a fixture: layers of this module leave the counters of every stream at zero."""
    made: list[StreamMemory] = []
    memory_of = module.memory_of

    def noted(*arguments: Any) -> StreamMemory:
        made.append(memory_of(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "memory_of", noted)
    yield
    torch.cuda.synchronize()
    memories = [memory for locks in made for memory in locks.known.values()]
    assert memories
    assert not any(memory[: COUNTER_BYTES // 4].any() for memory in memories)


def assert_chain(kernel: Any, chained: Any, sources: list[torch.Tensor]) -> None:
    """Calls one after the other read what was written just before, and nothing that is written after them."""
    wanted = [by_stages(chained, by_stages(kernel, source)) for source in sources]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for source in sources:
            room = torch.full_like(source, torch.nan)
            torch.cuda._sleep(PAUSE)
            room.copy_(source)
            kernel(room, None)
            found.append(chained(kernel(room, None), None))
            room.fill_(torch.nan)
        for one, other in zip(found, wanted, strict=True):
            assert_same_bits(one, other)


def wrong_of_threads(
    calls: list[Callable[[], torch.Tensor]], wanted: list[torch.Tensor], own_streams: bool
) -> list[tuple[int, int, str]]:
    """Which of the calls, by nine threads in turn, on streams of their own or on one, gave other bits, and where."""
    torch.cuda.synchronize()
    wrong: list[tuple[int, int, str]] = []

    def call(i: int) -> None:
        stream = torch.cuda.Stream() if own_streams else torch.cuda.default_stream()
        with torch.cuda.stream(stream):
            for turn in range(1000):
                out = calls[i]()
                if turn % 20 == 0 and not torch.equal(out, wanted[i]):
                    wrong.append((i, turn, difference(out, wanted[i])))
            stream.synchronize()

    threads = [Thread(target=call, args=(i % len(calls),)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
