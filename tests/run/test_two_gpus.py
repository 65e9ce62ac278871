"""Two GPUs of one process: the device of the tensors decides, whichever is current; streams, threads, graphs."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch

from kerneltable.errors import KernelInputError, KernelUnavailable, LayerError
from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.ops import installed
from kerneltable.run.checks.conformance_cases import plan_cases
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.run.linear import QuantLinear
from kerneltable.run.place import shipped_table
from kerneltable.run.probe import current_device
from kerneltable.select import complete

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
ZERO, ONE = "cuda:0", "cuda:1"
SCHEMES = ("fp8_block_w8a8", "fp8_w8a8", "w8a16_fp8", "mxfp8")
ONE_DEVICE = ("deepgemm_fp8_block", "sgl_deepgemm_fp8_block")
"""Kernels of a library that keeps what it has loaded for the first device; a second one is refused."""


def problem_of(scheme: str, m: int = 17, n: int = 512, k: int = 1024) -> Problem:
    return complete(shipped_table().schemes[scheme], Problem(scheme, m=m, n=n, k=k))


def data_of(problem: Problem) -> LayerData:
    """The same numbers every time, on the CPU."""
    return random_layer(problem, torch.Generator().manual_seed(3))


def layer_on(place: str, problem: Problem, data: LayerData, **more: Any) -> QuantLinear:
    return QuantLinear.from_tensors(
        problem.scheme,
        {name: tensor.to(place) for name, tensor in data.tensors.items()},
        None if data.bias is None else data.bias.to(place),
        input=problem.input,
        output=problem.output,
        weight_granularity=problem.weight_granularity,
        weight_block=problem.weight_block,
        input_granularity=problem.input_granularity,
        input_scaling=None if problem.input_scaling == "none" else problem.input_scaling,
        **more,
    )


def pair(problem: Problem, **more: Any) -> tuple[QuantLinear, QuantLinear, torch.Tensor]:
    """The same layer on both devices, and an input on the CPU."""
    data = data_of(problem)
    return layer_on(ZERO, problem, data, **more), layer_on(ONE, problem, data, **more), data.x.contiguous()


@pytest.mark.parametrize("kernel", sorted(set(registry.ids()) - set(ONE_DEVICE)))
def test_a_kernel_runs_where_its_tensors_are_whatever_device_is_current(kernel: str) -> None:
    table = shipped_table()
    problems, found = plan_cases(table, table.kernels[kernel], current_device(table, 0), shapes=4)
    if not problems:
        pytest.skip("; ".join(found.refused) or "no small shape")
    first, second, x = pair(problems[-1], kernel=kernel, verify="always")
    wanted = first(x.to(ZERO)).cpu()
    for current in (0, 1, 0):
        with torch.cuda.device(current):
            for layer, place in ((second, ONE), (first, ZERO), (second, ONE)):
                out = layer(x.to(place))
                assert str(out.device) == place
                assert torch.equal(out.cpu(), wanted)
            assert torch.cuda.current_device() == current
    assert second.kernel_for(x.shape[0]) == kernel


@pytest.mark.parametrize("kernel", ONE_DEVICE)
def test_a_library_that_keeps_to_one_device_refuses_a_second(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = shipped_table()
    problems, found = plan_cases(table, table.kernels[kernel], current_device(table, 0), shapes=4)
    if not problems:
        pytest.skip("; ".join(found.refused) or "no small shape")
    monkeypatch.setattr(installed, "_kept_devices", cache(dict))
    problem, tensors = problems[-1], data_of(problems[-1]).tensors
    names = table.kernels[kernel].parameters

    def bound(place: str) -> Any:
        return registry.load(kernel)(problem.at(None), **{name: tensors[name].to(place) for name in names})

    bound(ZERO)
    with pytest.raises(KernelUnavailable, match="one device of a process, cuda:0 here; found cuda:1"):
        bound(ONE)
    bound(ZERO)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_that_never_used_cuda_call_layers_of_both_devices(scheme: str) -> None:
    first, second, x = pair(problem_of(scheme))
    inputs = {ZERO: x.to(ZERO), ONE: x.to(ONE)}
    wanted = first(inputs[ZERO]).cpu()
    second(inputs[ONE])
    torch.cuda.synchronize(ONE)
    wrong: list[str] = []

    def work() -> None:
        try:
            for layer, place in ((second, ONE), (first, ZERO)) * 20:
                if not torch.equal(layer(inputs[place]).cpu(), wanted):
                    wrong.append(place)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_that_moves_is_packed_again_where_it_is(scheme: str) -> None:
    layer, _, x = pair(problem_of(scheme))
    wanted = layer(x.to(ZERO)).cpu()
    for place in (ONE, ZERO, "cpu", ONE):
        layer.to(place)
        out = layer(x.to(place))
        if place != "cpu":
            assert torch.equal(out.cpu(), wanted)
            assert layer.selection.device.index == torch.device(place).index
    with pytest.raises(KernelInputError, match="x is on cuda:0, the layer on cuda:1"):
        layer(x.to(ZERO))


def test_a_layer_bound_for_one_device_refuses_the_other() -> None:
    problem = problem_of("fp8_block_w8a8")
    table = shipped_table()
    layer = layer_on(ZERO, problem, data := data_of(problem), device=current_device(table, 0))
    layer.to(ONE)
    with pytest.raises(KernelInputError, match="is bound for cuda:0"):
        layer(data.x.to(ONE))


@pytest.mark.parametrize("where", ["weight_scale", "bias"])
def test_tensors_of_two_devices_are_refused(where: str) -> None:
    problem = problem_of("fp8_block_w8a8")
    tensors = {name: tensor.to(ONE) for name, tensor in data_of(problem).tensors.items()}
    tensors["bias"] = torch.zeros(problem.n, device=ONE)
    tensors[where] = tensors[where].to(ZERO)
    with pytest.raises(LayerError, match=r"cuda:0|cuda:1"):
        QuantLinear.from_tensors("fp8_block_w8a8", tensors)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_of_the_second_device_replays_there(scheme: str) -> None:
    first, second, x = pair(problem_of(scheme))
    second.prepare(m=x.shape[0])
    held = x.to(ONE)
    torch.cuda.synchronize(ONE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(1), torch.cuda.graph(graph, stream=torch.cuda.Stream(1)):
        out = second(held)
    assert torch.cuda.current_device() == 0
    for seed in (1, 2):
        given = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
        wanted = first(given.to(ZERO)).cpu()
        with torch.cuda.device(1):
            held.copy_(given)
            out.fill_(torch.nan)
            graph.replay()
        assert torch.equal(out.cpu(), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_side_streams_of_both_devices_at_once(scheme: str) -> None:
    first, second, x = pair(problem_of(scheme, m=64, n=2048, k=2048))
    layers, inputs = (first, second), [x.to(ZERO), x.to(ONE)]
    wanted = [layer(given).cpu() for layer, given in zip(layers, inputs, strict=True)]
    streams = [torch.cuda.Stream(place) for place in (0, 1)]
    torch.cuda.synchronize(ZERO)
    torch.cuda.synchronize(ONE)
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for place in (1, 0):
            with torch.cuda.stream(streams[place]):
                found[place].append(layers[place](inputs[place]))
    for place in (0, 1):
        streams[place].synchronize()
        assert all(torch.equal(out.cpu(), wanted[place]) for out in found[place])


def test_a_model_over_two_devices_computes_as_on_one() -> None:
    problem = problem_of("fp8_block_w8a8", n=1024, k=1024)
    first, second, x = pair(problem)
    both = second(first(x.to(ZERO)).to(ONE)).cpu()
    moved = first(first(x.to(ZERO))).cpu()
    assert torch.equal(both, moved)


def test_compiled_layers_of_two_devices_keep_apart() -> None:
    torch._dynamo.reset()
    first, second, x = pair(problem_of("w8a16_fp8"))
    wanted = first(x.to(ZERO)).cpu()
    with torch.inference_mode():
        for layer, place in ((first, ZERO), (second, ONE), (first, ZERO)):
            layer.compile(fullgraph=True)
            assert torch.equal(layer(x.to(place)).cpu(), wanted)
