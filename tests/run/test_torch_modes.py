"""Modes of torch, replaced tensors, threads, fork and CUDA graph capture; a CPU can show most of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from kerneltable.errors import CaptureError, KernelInputError
from kerneltable.ops.torch_op import register
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer, stand_in

# --- Modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_mode_without_gradients_gives_the_same_bits(mode):
    module = layer(bias=True)
    with mode():
        inside = module(inputs(3, K))
    assert torch.equal(inside, module(inputs(3, K)))


def test_a_kernel_packed_in_inference_mode_works_outside_with_its_workspace(monkeypatch):
    stand_in(monkeypatch)
    with torch.inference_mode():
        module = layer(override=BY_ROWS)
        module(inputs(3, K, dtype=torch.float16))
        module(inputs(30, K, dtype=torch.float16))
    assert float(module(inputs(3, K, dtype=torch.float16))[0, 0]) == 1.0
    assert float(module(inputs(30, K, dtype=torch.float16))[0, 0]) == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_casts_the_input_and_leaves_the_kernel_alone(dtype, given):
    module = layer(bias=True)
    x = inputs(3, K, dtype=given)
    with torch.autocast("cpu", dtype):
        inside = module(x)
    assert inside.dtype == dtype
    assert torch.equal(inside, module(x.to(dtype)))


def test_autocast_does_not_reach_the_kernel_through_the_op():
    module = layer()
    x = inputs(3, K)
    with torch.autocast("cpu", torch.float16):
        inside = register().op(x, module._handle, N, K)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, module(x))


def test_autocast_leaves_an_integer_input_to_be_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(KernelInputError, match=r"found torch\.int64"):
        layer()(torch.ones(3, K, dtype=torch.int64))


def test_a_tensor_put_in_the_place_of_another_is_packed_before_it_is_used():
    module, other = layer(), layer(seed=5)
    x = inputs(3, K)
    first = module(x)
    swapped = {key: getattr(other, key) for key in ("weight", "weight_scale")}
    assert torch.equal(torch.func.functional_call(module, swapped, (x,)), other(x))
    assert torch.equal(module(x), first)
    module.weight_scale = other.weight_scale
    module.weight = other.weight
    assert torch.equal(module(x), other(x))
    assert not torch.equal(module(x), first)


def test_repack_packs_again_what_was_packed(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer()
    module(inputs(3, K, dtype=torch.float16))
    assert seen.packed == ["reference", "reference"]
    module.repack()
    assert seen.packed == ["reference"] * 4
    module(inputs(3, K, dtype=torch.float16))
    assert seen.packed == ["reference"] * 4


def test_preparing_leaves_the_random_numbers_of_the_caller_alone():
    module, before = layer(), torch.get_rng_state()
    module.prepare(m=(3, 5))
    assert torch.equal(torch.get_rng_state(), before)


# --- Threads and forks --------------------------------------------------------------------------------------------

FIRST_LAYERS = """
import threading, torch
import kerneltable as kt
tensors = {"weight": torch.ones(16, 32).to(torch.float8_e4m3fn), "weight_scale": torch.ones(16, 1)}
together, made = threading.Barrier(8), []

def make():
    together.wait()
    made.append(kt.QuantLinear.from_tensors("w8a16_fp8", tensors, device="cpu"))

threads = [threading.Thread(target=make) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
assert all(layer(torch.ones(1, 32).bfloat16()).eq(32).all() for layer in made)
print(len(made), "layers")
"""


def test_sixteen_threads_that_call_first_bind_once(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer()
    seen.packed.clear()
    together = threading.Barrier(16)
    found = []

    def call():
        together.wait()
        found.append(float(module(inputs(3, K, dtype=torch.float16))[0, 0]))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [2.0] * 16
    assert seen.packed == ["reference"]


def test_the_first_layers_of_a_process_may_be_made_by_several_threads():
    program = [sys.executable, "-c", FIRST_LAYERS]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "8 layers"), done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_computes_though_a_thread_of_its_parent_held_the_locks():
    module = layer()
    wanted = module(inputs(3, K, dtype=torch.float16))
    other = layer(seed=3)
    plan = next(iter(other._ready.values())).plan
    packing = plan.ledger.packing(plan.tensors["weight"].data_ptr())
    held, release = threading.Event(), threading.Event()

    def hold():
        with other._lock, packing:
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = os.fork()
    if child == 0:  # what follows must not reach the test runner
        torch.set_num_threads(1)  # GNU OpenMP's own threads do not outlive a fork, and torch would wait for them
        good = torch.equal(module(inputs(3, K, dtype=torch.float16)), wanted)
        other(inputs(5, K, dtype=torch.float32))
        other(inputs(5, K))
        os._exit(0 if good else 1)
    release.set()
    holder.join(60)
    assert not holder.is_alive()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- Capture ------------------------------------------------------------------------------------------------------


@pytest.fixture
def capture(monkeypatch):
    """Pretend that a CUDA graph is being captured; call it to begin."""
    return lambda: monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_a_dtype_that_is_not_bound_is_refused_inside_a_capture_and_nothing_runs(monkeypatch, capture):
    seen = stand_in(monkeypatch)
    module = layer()
    seen.packed.clear()
    capture()
    with pytest.raises(CaptureError, match=r"not bound for torch\.float16.*prepare\(m="):
        module(inputs(3, K, dtype=torch.float16))
    assert seen.packed == seen.calls == []


def test_rows_that_were_never_run_are_refused_inside_a_capture_and_nothing_runs(monkeypatch, capture):
    seen = stand_in(monkeypatch)
    module = layer().prepare(m=3)
    seen.calls.clear()
    capture()
    with pytest.raises(CaptureError, match="m"):
        module(inputs(4, K))
    assert seen.calls == []
    module(inputs(3, K))
    assert seen.calls == [("reference", (3, K))]


def test_prepared_rows_may_be_captured_in_every_band(monkeypatch, capture):
    seen = stand_in(monkeypatch)
    module = layer(override=BY_ROWS).prepare(m=[2, 8]).prepare(m=4, input="f16")
    assert sorted(seen.packed) == ["cpu_fp8", "cpu_fp8", "reference"]
    capture()
    assert float(module(inputs(2, K))[0, 0]) == 1.0
    assert float(module(inputs(2, 4, K))[0, 0, 0]) == 2.0
    assert float(module(inputs(4, K, dtype=torch.float16))[0, 0]) == 1.0
    with pytest.raises(CaptureError):
        module(inputs(8, K, dtype=torch.float16))


def test_an_input_without_rows_needs_no_preparation(capture):
    module = layer()
    capture()
    assert module(inputs(0, K)).shape == (0, N)


def test_the_op_refuses_inside_a_capture_as_the_layer_does(monkeypatch, capture):
    stand_in(monkeypatch)
    module = layer()
    capture()
    with pytest.raises(CaptureError):
        register().op(inputs(7, K), module._handle, N, K)


def test_what_a_graph_was_captured_with_is_kept_and_its_handle_never_given_away():
    handle = torch.zeros(16, dtype=torch.uint8)
    captured = []
    now = [False]
    run = lambda rows, bias: rows  # noqa: E731
    watched = register().kept_through_captures(run, handle, captured, lambda: now[0])
    assert watched(1, None) == 1
    assert captured == []
    assert handle.data_ptr() not in register().kept
    now[0] = True
    watched(1, None)
    watched(1, None)
    assert captured == [run]
    assert register().kept.pop(handle.data_ptr()) is handle


def test_repacking_gives_the_op_a_new_handle_so_that_no_graph_replays_old_weights():
    module = layer()
    first, address = module._handle, module._handle.data_ptr()
    module.load_state_dict(layer(seed=5).state_dict())
    assert module._handle is not first
    assert module._handle.data_ptr() != address
    with pytest.raises(KernelInputError, match="no layer has this handle"):
        register().op(inputs(3, K), first, N, K)
