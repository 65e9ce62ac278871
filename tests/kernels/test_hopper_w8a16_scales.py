"""FP8 weights with scales of blocks on Hopper: sums in units that change from block to block, and not.

Which it is, is looked at when a layer is packed; the numbers need a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from recorded_launches import Driver

from kerneltable.kernels import hopper_w8a16
from kerneltable.kernels.hopper_w8a16 import Kernel
from kerneltable.model import Problem
from kerneltable.ops import hopper
from kerneltable.ops import hopper_w8a16 as op
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.ops.fragment_tiles import BY_BLOCK, BY_ROW, RESCALED
from kerneltable.ops.hopper_w8a16_few import Variant
from kerneltable.ops.hopper_w8a16_variants import Wide
from kerneltable.run.oracle import error_over_bound
from kerneltable.table import load_table

CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)
SHAPE = (400, 1056)
BLOCKS = (4, 9)
TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
CHOICES = [
    *(None, Wide(1), Wide(2), Wide(1, divide=True), Wide(2, divide=True)),
    *(Variant(2, 128, 4, 1), Variant(2, 128, 4, 3), Variant(1, 128, 4, 2)),
]
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    monkeypatch.setattr(op, "load", found.load)
    for module in (hopper, op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    monkeypatch.setattr(hopper_w8a16, "needed", lambda chip, name, device: CHIP)
    for cached in (op.prepare, op.input_maps):
        cached.cache_clear()
    yield found
    for cached in (op.prepare, op.input_maps):
        cached.cache_clear()


def rescaling_of(driver: Driver) -> set[tuple[int, int]]:
    """KT_SCALES and KT_RESCALE of what was loaded for wide tiles."""
    seen = [dict(one.defines) for one in driver.loaded]
    return {(one["KT_SCALES"], one["KT_RESCALE"]) for one in seen if "KT_RESCALE" in one}


@pytest.mark.parametrize(
    ("input", "other", "kind"),
    [
        ("bf16", 255.0, RESCALED),
        ("bf16", 256.0, BY_BLOCK),
        ("f16", 2.0**40, RESCALED),
        ("f16", 2.0**41, BY_BLOCK),
        ("f16", float("nan"), BY_BLOCK),
        ("bf16", -1.0, BY_BLOCK),
        ("bf16", 0.0, RESCALED),
    ],
)
def test_scales_of_blocks_are_looked_at_when_a_layer_is_packed(
    input: str, other: float, kind: int, driver: Driver
) -> None:
    n, k = SHAPE
    scale = torch.ones(BLOCKS)
    scale[1, 2] = other
    problem = Problem("w8a16_fp8", n=n, k=k, input=input, output="bf16", weight_granularity="block")
    weight = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    kernel = Kernel(problem, weight=weight, weight_scale=scale, chip=CHIP)
    assert kernel.scales == kind
    assert rescaling_of(driver) == {(BY_BLOCK, int(kind == RESCALED))}
    packing = set(driver.loaded)
    for m in (1, 200, 4096):
        x = torch.zeros(m, k, dtype=TORCH[input])
        kernel(x, None)
        kernel.product(x)
    assert set(driver.loaded) == packing
    assert {one[0] for one in driver.launched} <= packing


def test_scales_of_rows_have_no_units(driver: Driver) -> None:
    n, k = SHAPE
    problem = Problem("w8a16_fp8", n=n, k=k, output="bf16", weight_granularity="channel")
    weight = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    assert Kernel(problem, weight=weight, weight_scale=torch.ones(n, 1), chip=CHIP).scales == BY_ROW
    assert rescaling_of(driver) == {(BY_ROW, 0)}


def plain() -> torch.Tensor:
    return torch.rand(BLOCKS) + 0.5


def some_zero() -> torch.Tensor:
    """Blocks of zeros at both ends of k, between others, and all along it."""
    scale = plain()
    scale[0, 0] = scale[0, 8] = scale[1, 3] = scale[1, 4] = 0
    scale[2] = 0
    return scale


def powers_of_two() -> torch.Tensor:
    return torch.exp2(torch.randint(-6, 7, BLOCKS).float())


def far_apart() -> torch.Tensor:
    """What f16 allows, just."""
    return torch.exp2(torch.rand(BLOCKS) * 39.9 - 33)


def too_far_apart() -> torch.Tensor:
    """For both inputs."""
    return torch.exp2(torch.linspace(-110, 9, 36)).view(BLOCKS)


def wide(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    n, k = weight.shape
    return weight.double() * scale.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("dtypes", [("bf16", "bf16"), ("f16", "f32"), ("bf16", "f32")])
@pytest.mark.parametrize("make", [plain, some_zero, powers_of_two, far_apart, too_far_apart])
def test_scales_of_blocks_of_any_kind_are_within_the_bound(
    make: Callable[[], torch.Tensor], dtypes: tuple[str, str]
) -> None:
    n, k = SHAPE
    units = torch.cuda.get_device_properties(0).multi_processor_count
    chip = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)
    weight, scale = (torch.randn(n, k, device="cuda") * 3).to(torch.float8_e4m3fn), make().cuda()
    problem = Problem("w8a16_fp8", n=n, k=k, input=dtypes[0], output=dtypes[1], weight_granularity="block")
    kernel = Kernel(problem, weight=weight, weight_scale=scale, chip=chip)
    assert kernel.scales == (BY_BLOCK if make is too_far_apart else RESCALED)
    meant = wide(weight, scale)
    for m in (1, 17, 64, 129, 513):
        x, bias = torch.randn(m, k, device="cuda").to(TORCH[dtypes[0]]), torch.randn(n, device="cuda")
        reference = x.double() @ meant.t() + bias.double()
        magnitudes = x.double().abs() @ meant.abs().t()
        for choice in CHOICES:
            out = kernel.product(x, bias, choice)
            assert bool(out.isfinite().all())
            assert error_over_bound(out, reference, magnitudes, k, dtypes[1], "mma_f32") <= 1, (m, choice)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("kind", [BY_ROW, BY_BLOCK, RESCALED])
@pytest.mark.parametrize(("n", "k"), [(2112, 2048), (1008, 1056), (256, 640)])
def test_divided_tiles_are_within_the_bound_and_the_same_every_time(n: int, k: int, kind: int, inputs: int) -> None:
    units = torch.cuda.get_device_properties(0).multi_processor_count
    chip = cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)
    weight = (torch.randn(n, k, device="cuda") * 3).to(torch.float8_e4m3fn)
    blocks = (-(-n // 128), -(-k // 128))
    scale = torch.rand(n, 1, device="cuda") if kind == BY_ROW else torch.rand(blocks, device="cuda") + 0.5
    meant = weight.double() * scale.double() if kind == BY_ROW else wide(weight, scale)
    granularity = "channel" if kind == BY_ROW else "block"
    problem = Problem("w8a16_fp8", n=n, k=k, output="bf16", weight_granularity=granularity, m=1)
    kernel = Kernel(problem, weight=weight, weight_scale=scale, chip=chip)
    kernel.scales = kind
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    for m in (129, 300, 2000):
        x = torch.randn(m, k, device="cuda").bfloat16()
        found = [kernel.product(x, None, Wide(inputs, divide=True)) for _ in range(5)]
        reference, magnitudes = x.double() @ meant.t(), x.double().abs() @ meant.abs().t()
        assert error_over_bound(found[0], reference, magnitudes, k, "bf16", "mma_f32") <= 1
        assert all(torch.equal(found[0], other) for other in found[1:])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        captured = [kernel.product(x, None, Wide(inputs, divide=True)) for _ in range(3)]
    for _ in range(2):
        for out in captured:
            out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(found[0], out) for out in captured)
