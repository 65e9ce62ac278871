"""The adapter cpu_fp8: a layer's tensors in every accepted form, and the forms that it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.kernels.cpu_fp8 import Kernel
from kerneltable.model import Problem
from kerneltable.ops import cpp
from kerneltable.ops.settings import CompileSettings, activated
from kerneltable.run.oracle import error_over_bound, reference64

pytestmark = pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}")

N, K = 40, 96


@pytest.fixture(autouse=True, scope="module")
def _kept_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with activated(CompileSettings(folder=tmp_path_factory.mktemp("compiled"))):
        cpp.load_library.cache_clear()
        yield
        cpp.load_library.cache_clear()


def problem(
    granularity: str, block: tuple[int, int] | None = None, given: str = "none", scaling: str | None = None
) -> Problem:
    scheme = "w8a16_fp8" if given == "none" else "fp8_w8a8"
    return Problem(
        scheme,
        n=N,
        k=K,
        output="f32",
        weight_granularity=granularity,
        weight_block=block,
        weight_scale="f32",
        input_granularity=given,
        input_scaling=scaling,
    )


def tensors(scale: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": scale}


SHAPES = {
    "tensor []": ("tensor", None, ()),
    "tensor [1]": ("tensor", None, (1,)),
    "channel [n]": ("channel", None, (N,)),
    "channel [n, 1]": ("channel", None, (N, 1)),
    "block": ("block", (16, 32), (3, 3)),
    "block wider than the weight": ("block", (128, 128), (1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_every_form_of_a_weight_scale_is_accepted(case: str, dtype: torch.dtype) -> None:
    granularity, block, shape = SHAPES[case]
    raw = torch.randint(120, 130, shape, dtype=torch.uint8)
    narrow = dtype in (torch.uint8, torch.float8_e8m0fnu)
    scale = raw.view(dtype) if narrow else torch.rand(shape).add(0.1).to(dtype)
    given, x, bias = tensors(scale), torch.randn(3, K).to(torch.bfloat16), torch.randn(N, dtype=torch.float64)
    kept = {name: tensor.clone() for name, tensor in given.items()}
    out = Kernel(problem(granularity, block), **given)(x, bias)
    ref, s = reference64(problem(granularity, block), given, x, bias.float(), False)
    assert error_over_bound(out, ref, s, K, "f32", "f32") <= 1
    assert all(torch.equal(given[name].float(), kept[name].float()) for name in kept)


@pytest.mark.parametrize(
    ("granularity", "block", "shape"),
    [("tensor", None, (2,)), ("channel", None, (N + 1,)), ("block", (16, 32), (3, 4)), ("block", (16, 32), (9,)),
     ("block", None, (1, 1)), ("token", None, (N,))],
)  # fmt: skip
def test_a_weight_scale_of_another_form_is_refused(
    granularity: str, block: tuple[int, int] | None, shape: tuple[int, ...]
) -> None:
    with pytest.raises(KernelInputError, match="weight_scale"):
        Kernel(problem(granularity, block), **tensors(torch.ones(shape)))


def test_a_static_input_scale_is_needed_when_scaling_is_static() -> None:
    static = problem("tensor", None, "tensor", "static")
    Kernel(static, **tensors(torch.ones(())), input_scale=torch.ones(1))
    with pytest.raises(KernelInputError, match="input_scale: static scaling needs it"):
        Kernel(static, **tensors(torch.ones(())))
    with pytest.raises(KernelInputError, match="input_scale: must hold one number"):
        Kernel(static, **tensors(torch.ones(())), input_scale=torch.ones(2))


def test_an_upper_bound_limits_the_dynamic_scale() -> None:
    bounded = problem("tensor", None, "token", "dynamic")
    given = tensors(torch.ones(()))
    x = torch.ones(1, K)
    free, cut = Kernel(bounded, **given), Kernel(bounded, **given, input_scale_ub=torch.tensor([2.0**-12]))
    codes = given["weight"].double().sum(1)
    assert torch.allclose(free(x, None)[0].double(), codes, rtol=1e-4, atol=1e-4)
    assert torch.allclose(cut(x, None)[0].double(), codes * 448 * 2.0**-12, rtol=1e-4, atol=1e-4)
