"""mma_fp8_block: the kernel itself, run on the CPU thread by thread, and what the host decides for it."""

from __future__ import annotations

import ctypes
import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from device_code import build, pointer

from kerneltable.errors import KernelUnavailable
from kerneltable.kernels.mma_fp8_block import Kernel
from kerneltable.model import Problem
from kerneltable.ops import cuda_parts, mma_fp8_block
from kerneltable.ops.cuda_code import Product
from kerneltable.ops.mma_fp8_block import LARGE, PAIRED, Variant, choices, instance_of, parts_of, variant
from kerneltable.ops.mma_work import fitting

ALL = [*itertools.chain.from_iterable(PAIRED.values()), LARGE]
SMALL, H200 = 99 * 1024, 227 * 1024
"""Bytes of shared memory that a block may use: of SM89 and SM12x, and of SM90."""

CASES = {"one_block": True, "ring_at_once": False, "ring_late": True, "tails_in_parts": True}
"""Whether asynchronous copies land late, see warps/mma.cuh."""


@cache
def library(choice: Variant, folder: Path) -> ctypes.CDLL:
    defines = dict(instance_of(choice, "f32").defines)
    del defines["KT_OUT"]
    return build("mma_fp8_block", defines, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warps")


def exact_case(m: int, n: int, k: int) -> tuple[torch.Tensor, ...]:
    """Small integers and powers of two as scales, so that sums are exact in any order; and the result in float64."""
    blocks, padded = -(-k // 128), -(-m // 4) * 4
    draw = torch.Generator().manual_seed(m * n + k)
    codes, weight = (
        torch.randint(-8, 9, size, generator=draw).float().to(torch.float8_e4m3fn) for size in ((m, k), (n, k))
    )
    scales = torch.full((blocks, padded), torch.nan)
    scales[:, :m] = 2.0 ** torch.randint(-2, 3, (blocks, m), generator=draw)
    of_weight = 2.0 ** torch.randint(-2, 3, (-(-n // 128), blocks), generator=draw).float()
    bias = torch.randint(-9, 9, (n,), generator=draw).float()
    left = codes.double() * scales[:, :m].t().double().repeat_interleave(128, 1)[:, :k]
    right = weight.double() * of_weight.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return codes, scales, weight, of_weight, bias, left @ right.t()


def size_of(case: str, choice: Variant) -> tuple[int, int, int, int]:
    """m, n, k and parts: less than a tile, more stages than the ring has, and short last tiles of every kind with a
    last block of 16 columns and parts of unequal length."""
    ring = (choice.stages + 2) * choice.warps_k * 128 - 112
    return {"one_block": (1, 16, 16, 1), "tails_in_parts": (33, 144, 272, 2)}.get(case, (5, 16, ring, 1))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("choice", ALL, ids=lambda one: f"{one.rows}x{one.columns}x{one.stages}")
def test_integers_come_out_bit_for_bit(choice: Variant, case: str, folder: Path) -> None:
    m, n, k, parts = size_of(case, choice)
    codes, scales, weight, of_weight, bias, wanted = exact_case(m, n, k)
    out, sums = torch.full((m, n), torch.nan), torch.full((parts, m, n), torch.nan)
    operands = map(pointer, (codes, scales, weight, of_weight, bias, out, sums))
    library(choice, folder).run(CASES[case], choice.tiles(m, n), parts, *operands, m, n, k, scales.stride(0))
    if parts == 1:
        assert torch.equal(out.double(), wanted + bias)
        assert sums.isnan().all()
    else:
        assert torch.equal(sums.double().sum(0), wanted)
        assert out.isnan().all()


def test_parts_are_added_in_order_and_the_bias_last(folder: Path) -> None:
    parts = torch.randn(3, 5, 48) * torch.tensor([1.0, 2.0**12, 2.0**-12]).view(3, 1, 1)
    bias, out = torch.randn(48), torch.full((5, 48), torch.nan)
    build("add_parts", {}, folder).run(1, *map(pointer, (parts, bias, out)), 5, 48, 3)
    assert torch.equal(out, (parts[0] + parts[1]) + parts[2] + bias)


@pytest.mark.parametrize("shared", [SMALL, H200])
def test_every_choice_fits_into_the_shared_memory_of_a_chip_and_all_but_the_largest_twice(shared: int) -> None:
    found = choices(shared)
    assert list(found) == [one.rows for one in found.values()] == [16, 32, 64, 128]
    assert found[128].shared_bytes <= shared
    assert min(fitting(found[rows].shared_bytes, shared) for rows in PAIRED) >= 2


@pytest.mark.parametrize("m", [1, 16, 17, 33, 65, 129, 1024])
@pytest.mark.parametrize("units", [20, 48, 128, 188])
@pytest.mark.parametrize(("n", "k"), [(16, 16), (576, 7168), (4096, 7168), (32768, 512), (8192, 28672)])
def test_every_part_of_k_has_work_and_no_tile_is_higher_than_it_need_be(m: int, n: int, k: int, units: int) -> None:
    choice = variant(m, n, k, units, SMALL)
    parts = parts_of(choice, m, n, k, units)
    assert parts == 1 or -(-k // 128) // parts >= 2 * choice.warps_k
    assert choice.rows >= min(m, 64)
    assert choice.rows < 2 * max(m, 16)


def test_few_outputs_of_a_long_k_are_split_and_many_are_not() -> None:
    assert parts_of(variant(1, 256, 7168, 132, H200), 1, 256, 7168, 132) > 1
    assert parts_of(variant(4096, 4096, 7168, 132, H200), 4096, 4096, 7168, 132) == 1


MEASURED = {
    (4096, 7168): ((1, 16, 32, 2), (16, 16, 32, 2), (64, 64, 64, 4), (128, 128, 128, 4), (1024, 128, 128, 1)),
    (2112, 7168): ((1, 16, 32, 4), (16, 16, 32, 4), (64, 64, 64, 8), (128, 64, 64, 4), (1024, 64, 64, 1)),
    (8192, 28672): ((1, 16, 32, 1), (16, 16, 32, 1), (64, 64, 64, 2), (128, 128, 128, 2), (1024, 128, 128, 1)),
}
"""n and k: m, rows and columns of a tile, parts: at most 5 % behind the fastest of 24 tiles (H200, 2026-11-21)."""


@pytest.mark.parametrize(("n", "k"), MEASURED)
def test_on_an_h200_the_choice_is_one_that_was_measured_fast(n: int, k: int) -> None:
    for m, rows, columns, parts in MEASURED[n, k]:
        choice = variant(m, n, k, 132, H200)
        assert (choice.rows, choice.columns, parts_of(choice, m, n, k, 132)) == (rows, columns, parts), m


def test_every_instance_that_a_chip_asks_for_is_listed() -> None:
    listed = set(mma_fp8_block.instances([Product(1, 64, 128, 132)], "bf16", "f16"))
    asked = {instance_of(one, "f16") for shared in (SMALL, H200) for one in choices(shared).values()}
    assert asked == listed


def test_the_parts_are_among_the_instances_of_the_kernel() -> None:
    assert list(cuda_parts.instances([], "bf16", "f16")) == [cuda_parts.instance_of("f16")]
    assert list(mma_fp8_block.instances([], "bf16", "f16")) == []


def test_a_layer_on_the_cpu_is_refused_with_the_reason() -> None:
    weight = torch.zeros(16, 16, dtype=torch.float8_e4m3fn)
    with pytest.raises(KernelUnavailable, match="mma_fp8_block: needs a CUDA device; the weight is on cpu"):
        Kernel(Problem("fp8_block_w8a8", n=16, k=16), weight=weight, weight_scale=torch.ones(1, 1), chip=None)
