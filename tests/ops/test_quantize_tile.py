"""csrc/include/quantize_tile.cuh lane by lane on the CPU: the bytes of the torch quantizer, swizzled as copies do."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import pytest
import torch
from device_code import build, pointer

from kerneltable.ops.torch_fp8 import quantize_block

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
UNTOUCHED = 0xA5


@cache
def library(dtype: torch.dtype, folder: Path) -> ctypes.CDLL:
    width = 4 if dtype is torch.float32 else 8
    return build("quantize_tile", {"KT_IN": DTYPES[dtype], "KT_WIDTH": width}, folder)


def plain_rows(tiles: torch.Tensor, k: int) -> torch.Tensor:
    """Tiles [groups, rows, 128] as rows of k codes, by the address bits of the 128-byte swizzle: bits 4 to 6 of where a
    byte lies are its own xor bits 7 to 9."""
    groups, rows, _ = tiles.shape
    at = torch.arange(rows * 128)
    found = tiles.reshape(groups, -1)[:, at ^ (at >> 7 & 7) << 4].reshape(groups, rows, 128)
    return found.transpose(0, 1).reshape(rows, -1)[:, :k]


def numbers(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of different magnitudes, zeros of both signs."""
    draw = torch.Generator().manual_seed(m * k)
    x = torch.randn(m, k, generator=draw) * torch.randn(m, 1, generator=draw).exp()
    x[0, :6] = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 3.0, -3.0])
    return x.to(dtype)


def assert_quantized(x: torch.Tensor, folder: Path, rows: int = 16) -> None:
    """Every row's codes and scales are those of torch; what lies beyond the rows that are read is not touched."""
    m, k = x.shape
    groups, together = -(-k // 128), 1 if x.dtype is torch.float32 else 2
    tiles = torch.full((groups, rows, 128), UNTOUCHED, dtype=torch.uint8)
    scales = torch.full((groups, rows), torch.inf)
    asked, done = torch.zeros(2, groups, dtype=torch.int32)
    run = library(x.dtype, folder).run
    reads = 1
    while reads * together < m:
        reads *= 2
    turns = -(-groups * reads // 4) + 1
    places = (pointer(x), pointer(tiles), pointer(scales), ctypes.c_int(rows), pointer(asked), pointer(done))
    shift = run(ctypes.c_int(turns), *places, ctypes.c_int(m), ctypes.c_int(k), ctypes.c_int64(x.stride(0)))
    assert 1 << shift == reads
    wanted_codes, wanted_scales = quantize_block(x.contiguous())
    codes = plain_rows(tiles, k)
    assert torch.equal(codes[:m], wanted_codes.view(torch.uint8))
    torch.testing.assert_close(scales[:, :m].t(), wanted_scales, rtol=0, atol=0, equal_nan=True)
    covered = reads * together
    assert not codes[m:covered].any()
    assert scales[:, m:covered].isfinite().all()
    assert (tiles[:, covered:] == UNTOUCHED).all()
    assert torch.equal(asked, done)
    assert (done == max(1, reads // 4)).all()
    tail = plain_rows(tiles, groups * 128)[:covered, k:]
    assert not (tail & 0x7F).any()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 9, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_those_of_the_torch_quantizer(m: int, dtype: torch.dtype, folder: Path) -> None:
    assert_quantized(numbers(m, 400, dtype), folder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6e-8, 1e-30, 65000.0])
def test_a_group_of_any_kind_beside_others(value: float, dtype: torch.dtype, folder: Path) -> None:
    for m in (1, 7):
        x = numbers(m, 640, dtype)
        x[m // 2, 128:256] = value
        x[-1, 520:] = 0
        x[-1, 600] = value
        assert_quantized(x, folder)


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-126, 2.0**-61, 2.0**-60, 2.0**60, 2.0**61, 2.0**118])
def test_scales_on_both_sides_of_what_is_divided_fast(scale: float, folder: Path) -> None:
    for m in (2, 3):
        assert_quantized(numbers(m, 512, torch.float32) * (448 * scale), folder)


@pytest.mark.parametrize("m", [1, 5])
def test_rows_may_lie_apart(m: int, folder: Path) -> None:
    room = torch.full((m, 416), torch.nan, dtype=torch.bfloat16)
    x = room[:, :400]
    x.copy_(numbers(m, 400, torch.bfloat16))
    assert_quantized(x, folder)


def test_every_16_bit_number_is_rounded_as_torch_rounds_it(folder: Path) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    order = torch.randperm(65536, generator=torch.Generator().manual_seed(1))
    for x in (every.view(8, 8192), every[order].view(8, 8192)):
        assert_quantized(x.contiguous(), folder)
