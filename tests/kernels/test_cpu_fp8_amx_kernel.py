"""The adapter cpu_fp8_amx: cpu_fp8 in tiles, and cpu_fp8 itself where there are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import kerneltable
from kerneltable.errors import KernelUnavailable
from kerneltable.kernels import cpu_fp8, cpu_fp8_amx
from kerneltable.model import Problem
from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import has_path
from kerneltable.ops.settings import CompileSettings, activated
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64
from kerneltable.select import device, select
from kerneltable.table import load_table

pytestmark = pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}")

N, K = 200, 384
FORMS = {
    "fp8_block_w8a8": ("block", (128, 128), "block", "dynamic"),
    "fp8_w8a8": ("channel", None, "token", "dynamic"),
    "w8a16_fp8": ("tensor", None, "none", None),
    "mxfp8": ("block", (1, 32), "block", "dynamic"),
}


@pytest.fixture(autouse=True, scope="module")
def _kept_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with activated(CompileSettings(folder=tmp_path_factory.mktemp("compiled"))):
        cpp.load_library.cache_clear()
        yield
        cpp.load_library.cache_clear()


def problem(scheme: str) -> Problem:
    granularity, block, given, scaling = FORMS[scheme]
    return Problem(
        scheme,
        n=N,
        k=K,
        weight_granularity=granularity,
        weight_block=block,
        weight_scale="e8m0" if scheme == "mxfp8" else "f32",
        input_granularity=given,
        input_scaling=scaling,
    )


def tensors(scheme: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(N, K, generator=g).mul_(20).to(torch.float8_e4m3fn)
    if scheme == "mxfp8":
        return {"weight": weight, "weight_scale": torch.randint(115, 130, (N, K // 32), dtype=torch.uint8)}
    shape = {"fp8_block_w8a8": (2, 3), "fp8_w8a8": (N, 1), "w8a16_fp8": ()}[scheme]
    return {"weight": weight, "weight_scale": torch.rand(shape, generator=g) + 0.01}


@pytest.mark.parametrize("scheme", FORMS)
def test_every_scheme_is_within_the_bound_of_float32_sums(scheme: str) -> None:
    if not has_path("amx"):
        pytest.skip("this machine has no amx")
    asked, given = problem(scheme), tensors(scheme)
    bound = cpu_fp8_amx.Kernel(asked, **given)
    for m in (1, 4, 16, 33):
        x = torch.randn(m, K, generator=torch.Generator().manual_seed(m)).bfloat16()
        ref, s = reference64(asked, given, x, None, quantizes_input(asked, "native"))
        assert error_over_bound(bound(x, None), ref, s, K, "bf16", "f32") <= 1
        assert not torch.equal(bound(x, None), torch.zeros(m, N, dtype=torch.bfloat16))


def test_without_tiles_the_adapter_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_fp8_amx, "has_path", lambda path: path != "amx")
    with pytest.raises(KernelUnavailable, match="GCC 11 or later"):
        cpu_fp8_amx.Kernel(problem("fp8_w8a8"), **tensors("fp8_w8a8"))


def test_a_layer_without_tiles_is_computed_by_cpu_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_fp8_amx, "has_path", lambda path: False)
    given = tensors("fp8_block_w8a8")
    layer = kerneltable.QuantLinear.from_tensors("fp8_block_w8a8", given, device="cpu")
    x = torch.randn(20, K).bfloat16()
    assert torch.equal(layer(x), cpu_fp8.Kernel(problem("fp8_block_w8a8"), **given)(x, None))
    assert layer.kernel_for(20) == "cpu_fp8"


@pytest.mark.parametrize(("chip", "wanted"), [("amx", "cpu_fp8_amx"), ("x86-64-v4", "cpu_fp8"), ("neon", "cpu_fp8")])
def test_the_shipped_order_takes_it_for_some_rows_on_chips_with_tiles_alone(chip: str, wanted: str) -> None:
    table = load_table()
    where = device(f"cpu:{chip}", table)
    for scheme in FORMS:
        found = select(table, where, Problem(scheme, n=N, k=K, m=64))
        assert found.kernel == wanted
        if wanted == "cpu_fp8":
            (refused,) = [c for c in found.candidates if c.kernel == "cpu_fp8_amx"]
            assert "runs_on.features" in {refusal.predicate for refusal in refused.refusals}
        assert select(table, where, Problem(scheme, n=N, k=K, m=1)).kernel == "cpu_fp8"
