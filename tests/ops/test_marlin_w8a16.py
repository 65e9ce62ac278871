"""marlin_w8a16: the kernel itself, run on the CPU thread by thread, and what the host decides for it."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from device_code import build, pointer

from kerneltable.errors import KernelUnavailable
from kerneltable.kernels import marlin_w8a16 as adapter
from kerneltable.kernels.marlin_w8a16 import Kernel
from kerneltable.model import Problem
from kerneltable.ops import cuda_instances, fragment_tiles
from kerneltable.ops.cuda_code import Product
from kerneltable.ops.fragment_tiles import BY_32, BY_BLOCK, BY_ROW
from kerneltable.ops.marlin_w8a16 import PAIRED, VARIANTS, WIDE, Variant, choices, instance_of, instances, variant

ALL = [*itertools.chain.from_iterable(VARIANTS.values()), PAIRED, WIDE]
SMALL, H200 = 99 * 1024, 227 * 1024
"""Bytes of shared memory that a block may use: of SM86, SM89 and SM12x, and of SM90."""
SCALES = (BY_ROW, BY_BLOCK, BY_32)

INSTANCES = [(choice, SCALES[i % 3], "bf16") for i, choice in enumerate(ALL)]
INSTANCES += [(ALL[0], BY_32, "f16"), (ALL[1], BY_ROW, "f16"), (VARIANTS[16][0], BY_BLOCK, "bf16")]
"""Each instance with one kind of scales, two with f16, and the one that loses a stage to exponents in full."""

CALLS = (
    (9, -16, None, 1, False),  # short tiles of every kind, more steps than stages
    (5, 16, 288, 2, True),  # a second tile of rows, parts of unequal length
)
"""m, n beyond a tile, k (None: enough to use every stage twice), parts, whether copies land as late as they may."""

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]


@cache
def library(choice: Variant, scales: int, dtype: str, folder: Path) -> ctypes.CDLL:
    defines = dict(instance_of(choice, scales, dtype, "f32").defines)
    del defines["KT_OUT"]
    return build("marlin_w8a16", defines, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warps")


def exact_case(m: int, n: int, k: int, scales: int, dtype: str) -> Operands:
    """Input, packed weight, f32 scales, bias, result in float64.

    Small integers and powers of two as scales, so that sums are exact in any order; subnormal codes among the weights;
    the input's rows lie apart, with NaN between them.
    """
    draw = torch.Generator().manual_seed(m * n + k)
    weight = torch.randint(-8, 9, (n, k), generator=draw).float() * 2.0 ** torch.randint(-9, 1, (n, 1), generator=draw)
    weight = weight.to(torch.float8_e4m3fn)
    whole = torch.full((m, k + 8), torch.nan, dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)
    whole[:, :k] = torch.randint(-8, 9, (m, k), generator=draw).to(whole.dtype)
    bias = torch.randint(-9, 9, (n,), generator=draw).float()
    scale, exponents = None, None
    if scales == BY_32:
        exponents = torch.randint(125, 130, (n, k // 32), generator=draw).to(torch.uint8)
        wide = torch.exp2(exponents.double() - 127).repeat_interleave(32, 1)
    elif scales == BY_BLOCK:
        scale = 2.0 ** torch.randint(-2, 3, (-(-n // 128), -(-k // 128)), generator=draw).float()
        wide = scale.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    else:
        scale = 2.0 ** torch.randint(-2, 3, (n,), generator=draw).float()
        wide = scale.double()[:, None]
    packed = fragment_tiles.pack(weight.view(torch.uint8), exponents)
    x = whole[:, :k]
    return x, packed, scale, bias, x.double() @ (weight.double() * wide).t()


def named(case: tuple[Variant, int, str]) -> str:
    one, scales, dtype = case
    return f"{one.rows}x{one.columns}x{one.groups}-{('row', 'block', '32')[scales]}-{dtype}"


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("case", INSTANCES, ids=named)
def test_integers_come_out_bit_for_bit(
    case: tuple[Variant, int, str], call: tuple[int, int, int | None, int, bool], folder: Path
) -> None:
    choice, (m, beyond, given, parts, late) = case[0], call
    n = choice.rows + beyond
    k = given or choice.groups * (choice.stages + 2) * choice.depth - 96
    x, packed, scale, bias, wanted = exact_case(m, n, k, *case[1:])
    out, sums = torch.full((m, n), torch.nan), torch.full((parts, m, n), torch.nan)
    operands = map(pointer, (x, packed, scale, bias, out, sums if parts > 1 else None))
    grid = (-(-n // choice.rows), -(-m // choice.columns), parts)
    library(*case, folder).run(late, *grid, *operands, m, n, k, x.stride(0))
    if parts == 1:
        assert torch.equal(out.double(), wanted + bias)
    else:
        assert torch.equal(sums.double().sum(0), wanted)
        assert out.isnan().all()


def test_less_than_a_tile_comes_out_bit_for_bit(folder: Path) -> None:
    test_integers_come_out_bit_for_bit(INSTANCES[0], (3, -16, 32, 1, True), folder)


def test_every_instance_fits_into_the_shared_memory_of_the_smallest_chip_that_runs_it() -> None:
    assert max(instance_of(one, scales, "bf16", "f32").shared_bytes for one in ALL for scales in SCALES) <= SMALL


def test_exponents_that_do_not_fit_cost_a_stage() -> None:
    large, other = VARIANTS[16]
    assert large.shared_bytes(BY_32) > SMALL
    assert large.within(BY_32) == replace(large, stages=large.stages - 1)
    assert large.within(BY_BLOCK) == large
    assert other.within(BY_32) == other


@pytest.mark.parametrize("shared", [SMALL, 163 * 1024, H200])
@pytest.mark.parametrize(("m", "units"), [*itertools.product((1, 8, 9, 16, 17, 33, 65, 129, 4096), (16, 48, 132, 188))])
@pytest.mark.parametrize(("n", "k"), [(16, 32), (576, 7168), (4096, 7168), (32768, 512), (8192, 28672)])
def test_every_part_of_k_has_work_and_few_rows_of_the_input_have_a_column_each(
    m: int, n: int, k: int, units: int, shared: int
) -> None:
    choice, parts = variant(m, n, k, units, shared)
    assert parts == 1 or math.ceil(k / 128) // parts >= choice.groups
    assert choice.columns >= min(m, 64)
    assert choice.columns < 2 * max(m, 8)


def test_few_outputs_of_a_long_k_are_split_and_many_are_not() -> None:
    assert variant(1, 256, 7168, 132, H200)[1] > 1
    assert variant(4096, 4096, 7168, 132, H200)[1] == 1


def test_many_rows_share_a_multiprocessor_in_pairs_where_two_fit() -> None:
    assert [choices(shared)[128] for shared in (SMALL, 163 * 1024, H200)] == [(WIDE,), (PAIRED,), (PAIRED,)]


MEASURED = {
    (4096, 7168): ((1, 0, 1), (16, 0, 2), (64, 0, 4)),
    (24576, 1536): ((1, 1, 1), (16, 1, 1), (64, 1, 1)),
    (8192, 28672): ((1, 0, 1), (16, 0, 1), (64, 0, 2)),
}
"""n and k: m, which instance, parts: at most 5 % behind the fastest of six or seven (H200, 2026-11-21)."""


@pytest.mark.parametrize(("n", "k"), MEASURED)
def test_on_an_h200_the_choice_is_one_that_was_measured_fast(n: int, k: int) -> None:
    for m, which, parts in MEASURED[n, k]:
        assert variant(m, n, k, 132, H200) == (VARIANTS[max(m, 8)][which], parts), m


def test_the_instances_are_those_that_any_product_asks_for() -> None:
    listed = set(cuda_instances.instances("marlin_w8a16", [Product(1, 64, 128, 132)]))
    asked = {
        instance_of(variant(*product, shared)[0], scales, "bf16", "bf16")
        for product in cuda_instances.usual(132)[::97]
        for shared in (SMALL, H200)
        for scales in SCALES
    }
    assert asked <= listed


def test_an_input_of_32_bits_has_no_instance() -> None:
    assert list(instances([Product(1, 64, 128, 132)], "f16", "f32"))
    assert not list(instances([Product(1, 64, 128, 132)], "f32", "f32"))


def test_a_layer_on_the_cpu_is_refused_with_the_reason() -> None:
    weight = torch.zeros(16, 32, dtype=torch.float8_e4m3fn)
    with pytest.raises(KernelUnavailable, match="marlin_w8a16: needs a CUDA device; the weight is on cpu"):
        Kernel(Problem("w8a16_fp8", n=16, k=32), weight=weight, weight_scale=torch.ones(16), chip=None)


@pytest.fixture
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor packs on the CPU and compiles nothing."""
    monkeypatch.setattr(adapter, "needed", lambda chip, *_: chip)
    monkeypatch.setattr(adapter.cuda_parts, "prepare", lambda *_: None)
    monkeypatch.setattr(adapter.Kernel, "_call", lambda *_: None)


@pytest.mark.usefixtures("without_device")
def test_a_layer_is_packed_once_and_the_copy_of_another_kernel_of_the_layout_is_taken_as_it_is() -> None:
    weight = torch.randn(16, 32).to(torch.float8_e4m3fn)
    problem = Problem("w8a16_fp8", n=16, k=32, m=1, weight_granularity="channel")
    own = Kernel(problem, weight=weight, weight_scale=torch.ones(16), chip=None)
    assert torch.equal(own.packed, fragment_tiles.pack(weight.view(torch.uint8), None))
    other = Kernel(problem, weight=weight, weight_scale=torch.ones(16), chip=None, packed=own.packed)
    assert other.packed is own.packed
