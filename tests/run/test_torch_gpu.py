"""A layer on a real GPU: CUDA graphs, streams, several devices in one process."""

from __future__ import annotations

import pytest
import torch

from kerneltable.errors import CaptureError, KernelInputError
from kerneltable.run.linear import QuantLinear
from run.layers_for_torch import K, inputs, layer, tensors

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(**options) -> QuantLinear:
    given = {key: tensor.cuda() for key, tensor in tensors().items()}
    return QuantLinear.from_tensors("fp8_block_w8a8", given, **options)


@pytest.mark.gpu
@gpu
def test_a_captured_layer_replays_the_bits_of_an_eager_one():
    module = on_gpu().prepare(m=[1, 17])
    for m in (1, 17):
        held = torch.zeros(m, K, dtype=torch.bfloat16, device="cuda")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(held)
        for seed in (1, 2):
            x = torch.randn(m, K, generator=torch.Generator().manual_seed(seed)).bfloat16().cuda()
            held.copy_(x)
            out.fill_(float("nan"))
            graph.replay()
            assert torch.equal(out, module(x))


@pytest.mark.gpu
@gpu
def test_a_graph_captured_before_a_repack_still_replays_what_it_was_captured_with():
    module = on_gpu().prepare(m=4)
    x = inputs(4, K).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, module(x))
    module.repack()
    junk = [torch.full((2**20,), 255, dtype=torch.uint8, device="cuda") for _ in range(64)]
    wanted = module(x)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, wanted)
    assert len(junk) == 64


@pytest.mark.gpu
@gpu
def test_rows_that_were_not_prepared_are_refused_in_a_real_capture():
    module = on_gpu().prepare(m=4)
    x = inputs(5, K).cuda()
    with pytest.raises(CaptureError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        module(x)
    assert torch.isfinite(module(x).float()).all()


@pytest.mark.gpu
@gpu
def test_compiled_layers_with_graph_trees_never_replay_another_layers_graph():
    torch._dynamo.reset()
    blocks = [on_gpu().prepare(m=[2, 16]) for _ in range(3)]
    for number, block in enumerate(blocks):
        block.load_state_dict(tensors(seed=number))
        block.prepare(m=[2, 16])
        block.compile(mode="reduce-overhead", fullgraph=True)
    with torch.inference_mode():
        for _ in range(4):
            for block in blocks:
                for m in (2, 16):
                    x = inputs(m, K).cuda()
                    torch.compiler.cudagraph_mark_step_begin()
                    assert torch.equal(block(x).clone(), block._compute(x))


@pytest.mark.gpu
@gpu
def test_a_layer_on_a_side_stream_computes_the_same_bits():
    module = on_gpu()
    x = inputs(9, K).cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        fresh = module(x.half())
        found = module(x)
    side.synchronize()
    assert torch.equal(found, module(x))
    assert torch.equal(fresh, module(x.half()))


@pytest.mark.gpu
@gpu
def test_the_device_of_the_tensor_decides_among_several_in_one_process():
    here, there = layer(), on_gpu()
    assert here.selection.device.platform == "cpu"
    assert there.selection.device.platform == "cuda"
    for module, place in ((here, "cpu"), (there, "cuda")):
        assert module(inputs(3, K).to(place)).device.type == place
    with pytest.raises(KernelInputError, match="x is on cpu"):
        there(inputs(3, K))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_layer_of_the_second_gpu_launches_there_whatever_device_is_current():
    first, second = on_gpu(), on_gpu().to("cuda:1")
    assert (first.selection.device.index, second.selection.device.index) == (0, 1)
    x = inputs(9, K)
    assert torch.equal(first(x.to("cuda:0")).cpu(), second(x.to("cuda:1")).cpu())
    assert torch.cuda.current_device() == 0
    with pytest.raises(KernelInputError, match="x is on cuda:0, the layer on cuda:1"):
        second(x.to("cuda:0"))
