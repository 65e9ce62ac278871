"""The Triton products against float64 within the stated bound, and bit for bit on integers. Run by test_triton_ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from kerneltable.errors import KernelInputError
from kerneltable.ops import triton_fp8_block, triton_fp8_rowwise, triton_mxfp8, triton_w8a16
from kerneltable.ops.torch_fp8 import widen_e8m0
from kerneltable.ops.triton_chip import Strip, Tile, chip_of, fit, stage_bytes
from kerneltable.run.oracle import error_over_bound
from ops.triton_fixtures import (
    DEVICE,
    E4M3,
    FEATURES,
    FLOATS,
    INTERPRETED,
    bits,
    in_gap,
    poison,
    random_codes,
    widen_steps,
)

__all__ = ["poison"]
CHIP = chip_of(DEVICE, FEATURES)
OPS = ("fp8_block", "fp8_rowwise", "w8a16_channel", "w8a16_block", "mxfp8", "mxfp8_fold")
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
SHAPES = [
    (1, 1, 16), (2, 8, 17), (7, 16, 32), (17, 129, 64), (129, 16, 128), (2, 576, 130), (17, 8, 640), (1, 576, 640),
    (7, 129, 130), (1, 129, 17), (129, 1, 640), (16, 9, 2080),
]  # fmt: skip


@dataclass
class Case:
    """An op with its operands: run(bias, output, tile) launches it; left @ right.T is what it means, in float64."""

    run: Callable[..., torch.Tensor]
    left: torch.Tensor
    right: torch.Tensor
    accumulator: str


def make(op: str, m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, integers: bool = False) -> Case:
    """Random operands, or integers with power-of-two scales whose partial sums stay far below 2^11."""
    generator = torch.Generator().manual_seed(m * 7919 + n * 31 + k)
    draw = partial(torch.randint, generator=generator)
    weight = (draw(-1, 2, (n, k)).float().to(E4M3) if integers else random_codes(n, k, generator)).to(DEVICE)
    if op.startswith("fp8"):
        x = (draw(-4, 5, (m, k)).float().to(E4M3) if integers else random_codes(m, k, generator)).to(DEVICE)
    else:
        x = (draw(-4, 5, (m, k)).float() if integers else torch.randn(m, k, generator=generator)).to(dtype).to(DEVICE)

    def scales(*shape: int) -> torch.Tensor:
        values = torch.exp2(draw(-1, 2, shape).float()) if integers else torch.rand(shape, generator=generator) + 0.01
        return values.to(DEVICE)

    blocks, rows = -(-k // 128), -(-n // 128)
    left, right, raw = x.double(), weight.double(), weight.view(torch.uint8)
    if op == "fp8_block":
        xs, ws = scales(m, blocks), scales(rows, blocks)
        run = partial(triton_fp8_block.product, x, xs, weight, ws)
        return Case(
            run, left * widen_steps(m, k, xs, (1, 128)), right * widen_steps(n, k, ws, (128, 128)), "fp8_promoted"
        )
    if op == "fp8_rowwise":
        xs, ws = scales(m, 1), scales(n)
        return Case(
            partial(triton_fp8_rowwise.product, x, xs, weight, ws), left * xs, right * ws[:, None], "fp8_promoted"
        )
    if op.startswith("mxfp8"):
        low, high = (126, 129) if integers else (100, 150)
        codes = draw(low, high, (n, k // 32), dtype=torch.uint8).to(DEVICE)
        right = right * widen_e8m0(codes).repeat_interleave(32, 1)
        run = partial(triton_mxfp8.product, x, raw, codes, fold=op.endswith("fold"))
        return Case(run, left, right, "mma_f32")
    ws = scales(n) if op == "w8a16_channel" else scales(rows, blocks)
    right = right * (ws[:, None] if op == "w8a16_channel" else widen_steps(n, k, ws, (128, 128)))
    return Case(partial(triton_w8a16.product, x, raw, ws), left, right, "mma_f32")


def fits(op: str, k: int) -> bool:
    return not op.startswith("mxfp8") or k % 32 == 0


def tiles_for(op: str, m: int) -> list[Tile | Strip | None]:
    """The op's own choice, and the ways of the kernel that it would take elsewhere: swapped, split, wide, one row."""
    forms: list[Tile | Strip | None] = [None, Tile(16, 32, 128, 4, 2), Tile(16, 64, 128, 4, 2, split_k=3, swap=True)]
    forms += [Tile(32, 64, 128, 4, 2, split_k=2, group_m=2)]
    if op in ("fp8_block", "w8a16_block"):
        forms += [Tile(16, 256, 128, 4, 2), Tile(16, 256, 128, 4, 2, swap=True)]
    if op.startswith("w8a16"):
        forms += [Tile(16, 32, 64, 4, 2)]
    return [*forms, Strip(8, 256, 2)] if m == 1 else forms


def judged(case: Case, out: torch.Tensor, bias: torch.Tensor | None) -> float:
    ref = case.left @ case.right.t() + (0 if bias is None else bias.double())
    magnitude = case.left.abs() @ case.right.abs().t()
    return error_over_bound(out, ref, magnitude, case.left.shape[1], NAMES[out.dtype], case.accumulator)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product_of_any_shape_is_within_its_bound(op: str, m: int, n: int, k: int) -> None:
    if not fits(op, k):
        k = 32 * -(-k // 32)
    case = make(op, m, n, k)
    out = case.run(None, torch.float32, CHIP, None)
    assert out.shape == (m, n)
    assert out.is_contiguous()
    assert judged(case, out, None) <= 1


@pytest.mark.parametrize("op", OPS)
def test_every_form_of_a_tile_is_within_the_bound_and_gives_the_same_twice(op: str) -> None:
    for m, n, k in ((17, 200, 672), (1, 130, 672)):
        case = make(op, m, n, k)
        for tile in tiles_for(op, m):
            out = case.run(None, torch.float32, CHIP, tile)
            assert judged(case, out, None) <= 1, tile
            assert torch.equal(bits(out), bits(case.run(None, torch.float32, CHIP, tile))), tile


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("output", FLOATS)
def test_integers_come_out_bit_for_bit_in_every_form_and_output_type(op: str, output: torch.dtype) -> None:
    sizes = ((17, 130, 640), (1, 130, 640), (3, 9, 160)) if output == torch.float32 else ((1, 130, 640), (3, 9, 160))
    for m, n, k in sizes:
        case = make(op, m, n, k, integers=True)
        bias = torch.arange(-4, n - 4, dtype=torch.float32, device=DEVICE)
        exact = case.left @ case.right.t() + bias.double()
        for tile in tiles_for(op, m):
            out = case.run(bias, output, CHIP, tile)
            assert torch.equal(bits(out), bits(exact.to(output))), (tile, m)


@pytest.mark.parametrize("op", [op for op in OPS if not op.startswith("fp8") and op != "mxfp8_fold"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_weight_only_product_takes_each_input_type(op: str, dtype: torch.dtype) -> None:
    for m in (1, 17):
        case = make(op, m, 72, 416, dtype)
        assert judged(case, case.run(None, torch.float32, CHIP, None), None) <= 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_bias_is_added_once_before_the_one_rounding(op: str, dtype: torch.dtype) -> None:
    for m, tile in ((1, None), (5, None), (5, Tile(16, 32, 128, 4, 2, split_k=2))):
        case = make(op, m, 40, 480)
        bias = (torch.randn(40, generator=torch.Generator().manual_seed(3)) * 100).to(dtype).to(DEVICE)
        assert judged(case, case.run(bias, torch.bfloat16, CHIP, tile), bias) <= 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gaps", [(16, 16), (8, 5)])
def test_rows_with_nan_between_them_give_what_contiguous_rows_give(op: str, gaps: tuple[int, int]) -> None:
    """Bit for bit, unless the compiler reads strides that are no multiples of 16 in another order, and adds in it."""
    for m in (1, 17):
        case = make(op, m, 24, 160)
        function, arguments = case.run.func, list(case.run.args)  # type: ignore[attr-defined]
        place = 2 if op.startswith("fp8") else 1
        gapped = list(arguments)
        gapped[0], gapped[place] = in_gap(arguments[0], gaps[0]), in_gap(arguments[place], gaps[1])
        wanted = case.run(None, torch.float32, CHIP, None)
        found = function(*gapped, None, torch.float32, CHIP, None, **case.run.keywords)  # type: ignore[attr-defined]
        assert judged(case, found, None) <= 1
        if INTERPRETED or gaps == (16, 16):
            assert torch.equal(bits(found), bits(wanted))


@pytest.mark.parametrize("m", [1, 256])
def test_every_code_is_widened_exactly_nan_too(m: int) -> None:
    weight = torch.zeros(256, 16, dtype=torch.uint8)
    weight[:, 3] = torch.arange(256)
    stated = weight.view(E4M3).double()[:, 3]
    one = torch.ones(1, device=DEVICE)
    for dtype in FLOATS:
        x = torch.zeros(m, 16, dtype=dtype, device=DEVICE)
        x[:, 3] = 1
        for how in (
            ["bits"] if INTERPRETED else ["bits", "convert", *(["pairs", "quads"] if dtype != torch.float32 else [])]
        ):
            out = triton_w8a16.product(x, weight.to(DEVICE), one, None, torch.float32, CHIP, None, how=how)
            assert torch.equal(out.isnan().cpu(), stated.isnan().expand(m, 256))
            kept = ~stated.isnan()
            assert torch.equal(out.cpu().double()[:, kept], stated[kept].expand(m, -1)), (dtype, how)


@pytest.mark.parametrize("op", ["fp8_block", "fp8_rowwise"])
def test_every_product_of_two_codes_is_exact(op: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # the interpreter reads NaN as 480; the next test has NaN on the GPU
    weight, x = torch.zeros(256, 16, dtype=torch.uint8), torch.zeros(256, 16, dtype=torch.uint8)
    weight[:, 5], x[:, 5] = codes, codes
    x, weight = x.view(E4M3).to(DEVICE), weight.view(E4M3).to(DEVICE)
    one = torch.ones(256, 1, device=DEVICE)
    scale = torch.ones(2, 1, device=DEVICE) if op == "fp8_block" else torch.ones(1, device=DEVICE)
    product = triton_fp8_block.product if op == "fp8_block" else triton_fp8_rowwise.product
    exact = x.double() @ weight.double().t()
    assert torch.equal(product(x, one, weight, scale, None, torch.float32, CHIP).double(), exact)
    row = product(x[77:78], one[:1], weight, scale, None, torch.float32, CHIP)
    assert torch.equal(row.double(), exact[77:78])


@pytest.mark.parametrize("op", OPS)
def test_nan_in_a_weight_row_spoils_that_column_alone(op: str) -> None:
    if INTERPRETED and op.startswith("fp8"):
        pytest.skip("the interpreter reads the NaN codes of an FP8 dot as 480")
    for m in (1, 17):
        case = make(op, m, 24, 160)
        weight = case.run.args[2 if op.startswith("fp8") else 1]  # type: ignore[attr-defined]
        weight.view(torch.uint8)[7, 33] = 0xFF
        spoilt = case.run(None, torch.bfloat16, CHIP, None).isnan()
        assert spoilt[:, 7].all()
        assert spoilt.sum() == m


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_mx_scales_of_every_exponent_are_exact_and_a_nan_scale_spoils_its_column(m: int, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    weight = torch.zeros(256, 32)
    weight[:, 9] = 1.75
    x = torch.zeros(m, 32, dtype=dtype, device=DEVICE)
    x[:, 9] = 0.5
    raw = weight.to(E4M3).view(torch.uint8).to(DEVICE)
    out = triton_mxfp8.product(x, raw, codes.to(DEVICE), None, torch.float32, CHIP).cpu().double()
    assert out[:, 255].isnan().all()
    stated = 0.875 * torch.exp2(torch.arange(255).double() - 127)
    assert torch.equal(out[:, :255], stated.expand(m, 255))


def test_foldable_holds_at_both_ends_of_its_range_and_not_beyond() -> None:
    low, high = triton_mxfp8.FOLDED
    assert triton_mxfp8.foldable(torch.tensor([[low, high]], dtype=torch.uint8))
    assert not triton_mxfp8.foldable(torch.tensor([[low - 1, high]], dtype=torch.uint8))
    assert not triton_mxfp8.foldable(torch.tensor([[low, high + 1]], dtype=torch.uint8))


def test_f16_overflow_is_infinite_where_the_reference_is() -> None:
    x = torch.full((2, 64), 448.0).to(E4M3).to(DEVICE)
    weight = torch.stack([torch.full((64,), 448.0), torch.full((64,), 0.5)]).to(E4M3).to(DEVICE)
    one = torch.ones(1, device=DEVICE)
    out = triton_fp8_rowwise.product(x, one, weight, one, None, torch.float16, CHIP)
    assert out[:, 0].isinf().all()
    assert (out[:, 1] == 448 * 32).all()


@pytest.mark.parametrize("op", OPS)
def test_operands_that_do_not_fit_are_refused_by_name(op: str) -> None:
    case = make(op, 2, 24, 160)
    function, arguments = case.run.func, list(case.run.args)  # type: ignore[attr-defined]
    for place in range(len(arguments)):
        wrong = list(arguments)
        wrong[place] = arguments[place][:-1] if arguments[place].dim() == 1 else arguments[place][:, :-1]
        with pytest.raises(KernelInputError, match=r"triton_\w+: wanted .*found"):
            function(*wrong, None, torch.bfloat16, CHIP, **case.run.keywords)  # type: ignore[attr-defined]
    with pytest.raises(KernelInputError, match="bias"):
        case.run(torch.zeros(23, device=DEVICE), torch.bfloat16, CHIP)


@pytest.mark.parametrize("kib", [48, 64, 99, 163, 227])
def test_a_tile_that_is_fitted_stays_within_shared_memory(kib: int) -> None:
    for module, input_bytes in ((triton_fp8_block, 1), (triton_fp8_rowwise, 1), (triton_w8a16, 2), (triton_mxfp8, 2)):
        for m in (2, 33, 64, 256, 5000):
            tile = module.tiles(m, 4096, 7168, 132, kib)
            assert isinstance(tile, Tile)
            assert tile.stages >= 2
            assert tile.stages * stage_bytes(tile, input_bytes) <= kib * 1024
    wide = fit(Tile(256, 256, 128, 8, 4), 2, kib)
    assert wide.stages >= 2
    assert wide.stages * stage_bytes(wide, 2) <= kib * 1024 < 4 * stage_bytes(Tile(256, 256, 128, 8, 4), 2)


@pytest.mark.parametrize("module", [triton_fp8_block, triton_fp8_rowwise, triton_w8a16, triton_mxfp8])
def test_eight_to_twelve_tiles_are_worth_timing_for_every_size(module: object) -> None:
    for m in (1, 2, 16, 32, 64, 65, 256, 4096):
        found = module.candidates(m, 4096, 7168)  # type: ignore[attr-defined]
        assert 8 <= len(found) <= 12
        assert len(set(found)) == len(found)
