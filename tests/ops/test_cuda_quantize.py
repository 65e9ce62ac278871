"""The quantizers of csrc/cuda: launches as Python makes them, the kernels themselves thread by thread on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
import torch
from device_code import build

from kerneltable.errors import KernelInputError
from kerneltable.ops import cuda_quantize, cuda_quantize_rows
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.ops.cuda_code import Instance
from kerneltable.ops.cuda_launch import CONFIGURATION, FIRST_CELL, Function
from kerneltable.ops.cuda_quantize import GroupQuantizer, quantize_block_by_column
from kerneltable.ops.cuda_quantize_rows import TensorQuantizer, TokenQuantizer
from kerneltable.ops.cuda_vectors import Place, readable, width_of
from kerneltable.ops.torch_fp8 import quantize_block, quantize_static, quantize_tensor, quantize_token
from kerneltable.ops.torch_mx import quantize_mx
from kerneltable.ops.torch_scaled_mm import pad_rows

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CPU = torch.device("cpu")


def place(k: int, dtype: torch.dtype, multiprocessors: int = 100) -> Place:
    return Place(k, dtype, CudaChip("sm90", "sm_90a", 232448, (), multiprocessors), CPU)


def numbers(m: int, k: int, dtype: torch.dtype, *, special: bool = True) -> torch.Tensor:
    """Rows of different magnitudes, zeros of both signs, and from three rows on NaN, infinity and a row of zeros."""
    draw = torch.Generator().manual_seed(m * k)
    x = torch.randn(m, k, generator=draw) * torch.randn(m, 1, generator=draw).exp()
    x[0, :6] = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 3.0, -3.0])
    if special and m > 2:
        x[1, 3], x[2, k // 2] = torch.nan, torch.inf
        x[-1] = 0
    return x.to(dtype)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Functions whose launch runs the source on the CPU, with what stands in the frame that the driver would read."""
    folder = tmp_path_factory.getbasetemp()
    for module in (cuda_quantize, cuda_quantize_rows):
        monkeypatch.setattr(module, "load", lambda one, chip, device: loaded(one, folder))
    cuda_quantize.prepare.cache_clear()
    yield
    cuda_quantize.prepare.cache_clear()


@cache
def library_of(file: str, defines: tuple[tuple[str, int], ...], folder: Path) -> ctypes.CDLL:
    return build(Path(file).stem, dict(defines), folder)


@cache
def loaded(instance: Instance, folder: Path) -> Function:
    library = library_of(instance.file, instance.defines, folder)
    run = library.find if instance.name == "find_largest" else library.run

    def launch(at: int, handle: int, table: int, extra: None) -> int:
        grid, _, _, block, *_ = Struct(CONFIGURATION).unpack(ctypes.string_at(at, FIRST_CELL))
        places = (ctypes.c_uint64 * len(instance.types)).from_address(table)
        given = [kind.from_address(where) for kind, where in zip(instance.types, places, strict=True)]
        threads = (block,) if instance.name == "quantize_token" else ()
        assert block % 32 == 0
        run(*map(ctypes.c_int, (grid, *threads)), *given)
        return 0

    return Function(1, launch, 0, instance.types, 0, lambda device: 0)


def assert_same(found: tuple[torch.Tensor, torch.Tensor], stated: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Byte for byte, shapes too; a NaN is a NaN."""
    assert torch.equal(found[0].view(torch.uint8), stated[0].view(torch.uint8))
    assert found[1].dtype == stated[1].dtype
    torch.testing.assert_close(found[1], stated[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("m", "k", "dtype", "multiprocessors"),
    [(3, 400, BF16, 100), (6, 264, BF16, 0), (3, 37, F16, 0)],
)
def test_groups_of_128_are_those_of_the_torch_quantizer(m: int, k: int, dtype: Any, multiprocessors: int) -> None:
    x = numbers(m, k, dtype)
    assert_same(GroupQuantizer(place(k, dtype, multiprocessors), 128)(x), quantize_block(x))


@pytest.mark.parametrize(("m", "k", "dtype"), [(3, 160, BF16), (3, 52, F32)])
def test_groups_of_32_are_those_of_the_mx_quantizer(m: int, k: int, dtype: Any) -> None:
    x = numbers(m, k, dtype)
    assert_same(GroupQuantizer(place(k, dtype), 32)(x), quantize_mx(x))


@pytest.mark.parametrize("m", [3, 4])
def test_by_column_rows_are_filled_up_with_codes_of_zero(m: int) -> None:
    x = numbers(m, 256, BF16)
    codes, scales = GroupQuantizer(place(256, BF16), 128, by_column=True)(x)
    stated = pad_rows(*quantize_block(x))
    assert codes.shape == stated[0].shape
    assert scales.stride() == stated[1].stride() == (1, 4)
    assert_same((codes, scales[:m]), (stated[0], stated[1][:m]))
    assert scales[m:].isfinite().all()


def test_scales_by_column_for_the_products_of_csrc() -> None:
    x = numbers(3, 400, BF16)
    codes, scales = quantize_block_by_column(x, place(400, BF16).chip)
    assert scales.shape == (4, 4)
    assert_same((codes, scales[:, :3].t()), quantize_block(x))


@pytest.mark.parametrize("words", [1, 255, 300])
def test_words_for_the_product_are_cleared_and_no_others(words: int) -> None:
    x, flags = numbers(3, 400, BF16), torch.full((words + 2,), -1, dtype=torch.int32)
    quantize_block_by_column(x, place(400, BF16).chip, flags[1:-1])
    assert flags.tolist() == [-1, *[0] * words, -1]


@pytest.mark.parametrize("strides", ["padded rows", "odd address", "columns first"])
def test_any_strides_give_the_same_bytes(strides: str) -> None:
    x, room = numbers(3, 264, BF16), torch.full((3 * 272 + 1,), torch.nan, dtype=BF16)
    views = {
        "padded rows": room[:-1].view(3, 272)[:, :264],
        "odd address": room[1 : 3 * 264 + 1].view(3, 264),
        "columns first": torch.empty(264, 3, dtype=BF16).t(),
    }
    view = views[strides].copy_(x)
    assert_same(GroupQuantizer(place(264, BF16), 128)(view), quantize_block(x))


def test_only_what_vectors_cannot_read_is_copied() -> None:
    x = torch.zeros(4, 272, dtype=BF16)
    assert readable(x[:, :264], 8).data_ptr() == x.data_ptr()
    assert readable(x[:, 4:268], 8).is_contiguous()
    assert [width_of("bf16", k) for k in (264, 260, 258)] == [8, 4, 1]
    assert [width_of("f32", k) for k in (264, 258)] == [4, 1]


@pytest.mark.parametrize("limit", [None, 0.004])
@pytest.mark.parametrize(
    ("m", "k", "dtype", "multiprocessors"),
    [(4, 520, BF16, 100), (3, 8200, F16, 1)],
)
def test_one_scale_a_row(m: int, k: int, dtype: Any, multiprocessors: int, limit: float | None) -> None:
    x, upper = numbers(m, k, dtype), None if limit is None else torch.tensor(limit)
    assert_same(TokenQuantizer(place(k, dtype, multiprocessors), upper)(x), quantize_token(x, upper))


@pytest.mark.parametrize("limit", [None, 0.004])
@pytest.mark.parametrize(("m", "k", "special"), [(3, 264, False), (3, 264, True), (9, 8192, False)])
def test_one_scale_of_its_own_for_all(m: int, k: int, special: bool, limit: float | None) -> None:
    x, upper = numbers(m, k, BF16, special=special), None if limit is None else torch.tensor(limit)
    quantize = TensorQuantizer(place(k, BF16, 1), None, upper)
    assert_same(quantize(x), quantize_tensor(x, upper))


def test_one_scale_for_all_of_rows_that_lie_apart() -> None:
    x = torch.full((3, 272), torch.nan, dtype=BF16)
    x[:, :264] = numbers(3, 264, BF16, special=False)
    assert_same(TensorQuantizer(place(264, BF16), None, None)(x[:, :264]), quantize_tensor(x[:, :264]))


@pytest.mark.parametrize("scale", [0.0123, 0.03125, 2.0**-100])
def test_a_given_scale(scale: float) -> None:
    x, given = numbers(4, 264, BF16), torch.tensor(scale)
    assert_same(TensorQuantizer(place(264, BF16), given, None)(x), quantize_static(x, given))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_every_16_bit_number_is_divided_as_ieee_divides(dtype: Any) -> None:
    bits = torch.arange(65536, dtype=torch.int32)
    x = (bits << 16).view(F32) if dtype is F32 else bits.to(torch.int16).view(dtype)
    for scale in (0.7, 1.9999999, 2.0**-40 / 3):
        given = torch.tensor(scale)
        assert_same(TensorQuantizer(place(256, dtype, 1), given, None)(x.view(256, 256)),
                    quantize_static(x.view(256, 256), given))  # fmt: skip


@pytest.mark.parametrize(("dtype", "digits"), [(BF16, 8), (F16, 11)])
def test_every_scale_of_a_largest_number_divides_every_other_one_to_the_right_code(
    dtype: Any, digits: int, tmp_path: Path
) -> None:
    run, tried = build("divisor", {"KT_IN": int(dtype is F16), "KT_WIDTH": 8}, tmp_path).run, ctypes.c_int64()
    assert run(digits, ctypes.byref(tried)) == 0
    assert tried.value > 42 * 2 ** (2 * digits - 2)


@pytest.mark.parametrize(("m", "k"), [(8, 384), (5, 128), (7, 1032)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, -0.0, 6e-8, 1e-30])
def test_a_group_of_any_kind_beside_others_whose_scales_are_shared(m: int, k: int, value: float) -> None:
    """Four rows to a thread, as for large inputs; a group that is not divided fast, and a row of them."""
    x = numbers(m, k, BF16, special=False)
    x[m // 2, k - 100 :] = value
    x[-1] = value
    assert_same(GroupQuantizer(place(k, BF16, 0), 128)(x), quantize_block(x))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 128),
        torch.zeros(2, 256, dtype=BF16),
        torch.zeros(128, dtype=BF16),
        torch.zeros(0, 128, dtype=BF16),
    ],
)
def test_another_input_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(KernelInputError, match=r"x must be \[m, 128\] torch.bfloat16 on cpu"):
        GroupQuantizer(place(128, BF16), 128)(x)


def test_a_shape_that_was_seen_does_not_let_another_dtype_through() -> None:
    quantize = TokenQuantizer(place(128, BF16), None)
    quantize(torch.ones(1, 128, dtype=BF16))
    with pytest.raises(KernelInputError, match="float16"):
        quantize(torch.ones(1, 128, dtype=F16))
