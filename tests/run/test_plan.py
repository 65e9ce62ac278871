"""Binding: constructor parameters by name, refusals in the error, bands of m, left-out kernels, loud slow paths."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from kerneltable.errors import KernelTableError, NoKernelError
from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.run.packing import canonical_name
from kerneltable.run.plan import bind
from kerneltable.select import device
from kerneltable.select.bands import rows_of
from kerneltable.table import load_table

BLOCK = Problem("fp8_block_w8a8", n=256, k=256)
TENSORS = {"weight": torch.ones(256, 256).to(torch.float8_e4m3fn), "weight_scale": torch.ones(2, 2)}


ORDER = "torch_scaled_mm_block, triton_fp8_block, triton_w8a16, reference"
LAYER = f"override: 1\nroutes:\n  fp8_block_w8a8: {{cuda: {{order: {{replace: [{ORDER}]}}}}}}\n"


@pytest.fixture
def table():
    """The shipped rows in an order in which no step looks at m."""
    return load_table(overrides=[("order", LAYER)])


@pytest.fixture
def built(monkeypatch):
    """Stand-ins for every kernel: what each constructor was given, in order."""
    calls: list[tuple[str, dict]] = []

    def load(kernel):
        def construct(problem, **arguments):
            calls.append((kernel, {"problem": problem} | arguments))
            return lambda x, bias: x.new_full((x.shape[0], problem.n), float(len(calls)))

        return construct

    monkeypatch.setattr(registry, "load", load)
    return calls


def on(table, name, **packages):
    return device(name, table, packages={"torch": "2.11.0", "kerneltable": None} | packages)


def test_a_constructor_gets_the_parameters_of_its_row_by_name(table, built):
    plan = bind(table, on(table, "h200"), BLOCK, TENSORS)
    assert plan.kernel == "torch_scaled_mm_block"
    ((kernel, given),) = built
    assert kernel == "torch_scaled_mm_block"
    assert set(given) == {"problem", *table.kernels[kernel].parameters}
    assert given["weight"] is TENSORS["weight"]


def test_an_optional_parameter_that_the_layer_lacks_is_none(table, built):
    tensors = {"weight": TENSORS["weight"], "weight_scale": torch.ones(256)}
    bind(table, on(table, "h200"), Problem("fp8_w8a8", n=256, k=256), tensors)
    assert built[0][1]["input_scale"] is None


def test_a_constructor_sees_no_none_among_the_quantization_details(table, built):
    bind(table, on(table, "h200"), BLOCK, TENSORS)
    problem = built[0][1]["problem"]
    assert (problem.weight_block, problem.weight_scale, problem.input_granularity) == ((128, 128), "f32", "block")
    assert problem.m is None


def test_a_row_may_spell_a_parameter_by_its_alias(table):
    scheme = table.schemes["fp8_block_w8a8"]
    assert canonical_name(scheme, "weight_scale_inv") == "weight_scale"
    assert canonical_name(scheme, "weight_scale") == "weight_scale"
    assert canonical_name(scheme, "workspace") == "workspace"


def test_no_kernel_names_every_candidate_with_its_refusals(table, built):
    with pytest.raises(NoKernelError) as caught:
        bind(table, device("h200", table, packages={}), BLOCK, TENSORS)
    text = str(caught.value)
    for step in table.routes["fp8_block_w8a8", "cuda"].steps:
        assert step.kernel in text
    assert "needs.packages" in text
    assert "dispatch.yaml:" in text
    assert caught.value.selection.kernel is None
    assert built == []


def test_a_forced_kernel_is_taken_though_another_stands_before_it(table, built):
    assert bind(table, on(table, "h200"), BLOCK, TENSORS, "reference").kernel == "reference"
    assert [kernel for kernel, _ in built] == ["reference"]


def test_a_forced_kernel_that_refuses_is_an_error_with_its_refusals(table, built):
    with pytest.raises(NoKernelError, match="torch_scaled_mm_block: runs_on"):
        bind(table, on(table, "a100"), BLOCK, TENSORS, "torch_scaled_mm_block")
    assert built == []


def test_a_forced_kernel_that_does_not_exist_is_an_error_naming_those_that_do(table, built):
    with pytest.raises(NoKernelError, match=r"'nothing' is not in the table.*reference"):
        bind(table, on(table, "a100"), BLOCK, TENSORS, "nothing")


def test_a_route_that_looks_at_m_takes_another_kernel_for_another_m(built):
    override = "kernels:\n  torch_scaled_mm_block: {accepts: {m: {min: 64}}}\n"
    table = load_table(overrides=[("small", LAYER + override)])
    h200 = on(table, "h200", triton="3.6.0")
    assert rows_of(table, h200, "fp8_block_w8a8") is not None
    plan = bind(table, h200, BLOCK, TENSORS)
    assert built == []
    assert [plan.id_for(m) for m in (1, 63, 64, 65, 1)] == [
        "triton_fp8_block",
        "triton_fp8_block",
        "torch_scaled_mm_block",
        "torch_scaled_mm_block",
        "triton_fp8_block",
    ]
    assert [kernel for kernel, _ in built] == ["triton_fp8_block", "torch_scaled_mm_block"]


def test_a_route_that_does_not_look_at_m_is_packed_once(table, built):
    h200 = on(table, "h200")
    assert rows_of(table, h200, "fp8_block_w8a8") is None
    plan = bind(table, h200, BLOCK, TENSORS)
    assert len({id(plan.kernel_for(m)) for m in (1, 64, 1)}) == 1
    assert len(built) == 1


def test_a_kernel_that_cannot_be_loaded_is_left_out_loudly_for_the_next(table, built, monkeypatch, caplog):
    working = registry.load

    def load(kernel):
        if kernel == "torch_scaled_mm_block":
            raise ImportError("libexample.so: undefined symbol")
        return working(kernel)

    monkeypatch.setattr(registry, "load", load)
    plan = bind(table, on(table, "h200", triton="3.6.0"), BLOCK, TENSORS)
    assert plan.kernel == "triton_fp8_block"
    assert plan.id_for(5) == "triton_fp8_block"
    assert "undefined symbol" in caplog.text


def test_a_forced_kernel_that_cannot_be_built_is_an_error(table, monkeypatch):
    def load(kernel):
        raise KernelTableError("no compiler")

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(KernelTableError, match="no compiler"):
        bind(table, on(table, "h200"), BLOCK, TENSORS, "torch_scaled_mm_block")


def test_when_every_kernel_fails_to_load_the_error_holds_each_reason(table, monkeypatch):
    def load(kernel):
        raise ImportError(f"no module for {kernel}")

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(NoKernelError) as caught:
        bind(table, on(table, "h200"), BLOCK, TENSORS)
    assert "no module for torch_scaled_mm_block" in str(caught.value)
    assert "no module for reference" in str(caught.value)


def test_a_slow_path_on_a_gpu_warns_once_with_reasons(table, built, caplog):
    a100 = on(table, "a100")
    for n in (256, 384, 512):
        bind(table, a100, Problem("fp8_block_w8a8", n=n, k=256), TENSORS)
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert {kernel for kernel, _ in built} == {"reference"}
    assert len(warned) == 1
    assert "reference" in warned[0].getMessage()
    assert "triton_w8a16: needs.packages" in warned[0].getMessage()


def test_a_fast_path_and_a_cpu_do_not_warn(table, built, caplog):
    bind(table, on(table, "h200"), BLOCK, TENSORS)
    bind(table, on(table, "epyc-genoa"), BLOCK, TENSORS)
    assert [r for r in caplog.records if "slow path" in r.getMessage()] == []


def test_threads_that_ask_at_once_share_one_packed_kernel(built):
    override = "kernels:\n  torch_scaled_mm_block: {accepts: {m: {min: 2}}}\n"
    table = load_table(overrides=[("small", LAYER + override)])
    plan = bind(table, on(table, "h200"), BLOCK, TENSORS)
    together = threading.Barrier(8)
    found = []

    def ask():
        together.wait()
        found.append(plan.kernel_for(16))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len({id(kernel) for kernel in found}) == 1
