"""Counters of Marlin and humming: launches that can overlap never share them; with ops of the same signatures."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import library_stand_ins as fake
import pytest
import torch

from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.ops import stream_memory
from kerneltable.ops.stream_memory import MOST_STREAMS, StreamMemory
from kerneltable.run.layer_data import random_layer
from kerneltable.select import complete
from kerneltable.table import load_table

TABLE = load_table()
PROBLEM = complete(TABLE.schemes["w8a16_fp8"], Problem("w8a16_fp8", m=4, n=256, k=128))
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["vllm_marlin_fp8", "humming_w8a16"])
def called(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bound kernel, `given`: the counters of each call in order, and `stream`: where calls go, None for a capture."""
    found = SimpleNamespace(given=[], stream=0)
    monkeypatch.setattr(stream_memory, "current_stream", lambda device: found.stream)

    def marlin(a: torch.Tensor, *rest: Any) -> torch.Tensor:
        found.given.append(rest[9])
        return fake.marlin_gemm(a, *rest)

    def humming(*args: Any, locks: torch.Tensor, **more: Any) -> torch.Tensor:
        found.given.append(locks)
        return fake.humming_forward(*args, locks=locks, **more)

    fake.install(monkeypatch, "humming.schema", HummingWeightSchema=fake.HummingWeightSchema)
    transform = fake.prepare_and_transform_humming_tensors
    fake.install(monkeypatch, "humming.transform", prepare_and_transform_humming_tensors=transform)
    fake.install(monkeypatch, "humming.forward", humming_forward=humming)
    ops = {"marlin_gemm": (fake.MARLIN, marlin), "gptq_marlin_repack": (fake.REPACK, fake.gptq_marlin_repack)}
    with fake.registered("_C", **ops):
        data = random_layer(PROBLEM, torch.Generator().manual_seed(1))
        parameters = {name: data.tensors.get(name) for name in TABLE.kernels[request.param].parameters}
        kernel = registry.load(request.param)(PROBLEM.at(None), **parameters)

        def call(stream: int | None) -> torch.Tensor:
            found.stream = stream
            kernel(data.x, None)
            return found.given[-1]  # type: ignore[no-any-return]

        found.call = call
        yield found


def memory(counters: torch.Tensor) -> int:
    return counters.untyped_storage().data_ptr()


def test_streams_never_share_counters_and_one_stream_keeps_its_own(called: Any) -> None:
    first, second, again = called.call(1), called.call(2), called.call(1)
    assert memory(first) != memory(second)
    assert memory(first) == memory(again)
    assert first.dtype == torch.int32
    assert not first.any()


def test_every_captured_call_has_counters_of_its_own(called: Any) -> None:
    eager = called.call(1)
    captured = [called.call(None) for _ in range(3)]
    assert len({memory(counters) for counters in (eager, *captured)}) == 4
    assert memory(called.call(1)) == memory(eager)


def test_counters_made_in_inference_mode_can_be_written_outside(called: Any) -> None:
    with torch.inference_mode():
        counters = called.call(1)
    assert not counters.is_inference()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = StreamMemory(torch.device("cpu"), 8)
    for stream in range(MOST_STREAMS + 50):
        monkeypatch.setattr(stream_memory, "current_stream", lambda device, stream=stream: stream)
        assert locks.now().tolist() == [0] * 8
    assert len(locks.known) == MOST_STREAMS


@pytest.mark.gpu
@gpu
def test_real_streams_and_captures_of_a_gpu_are_told_apart() -> None:
    place = torch.device("cuda", torch.cuda.current_device())
    locks, sides = StreamMemory(place, 132), [torch.cuda.Stream() for _ in range(2)]
    seen = [memory(locks.now())]
    for side in sides:
        with torch.cuda.stream(side):
            seen.append(memory(locks.now()))
            assert memory(locks.now()) == seen[-1]
    held = []
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=sides[0]):
        held += [locks.now(), locks.now()]
        for counters in held:
            counters.add_(1)
    assert len({*seen, *map(memory, held)}) == 5
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert [int(counters.sum()) for counters in held] == [132, 132]  # the graph zeroes them at each replay
    assert memory(locks.now()) == seen[0]
    assert not locks.now().any()
