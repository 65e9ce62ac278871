"""The AMX path of csrc/cpu/fp8_linear.cpp: what tiles cannot take is computed on the other path."""

from __future__ import annotations

import pytest
import torch

from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import Quantization, Weight, has_path, linear

pytestmark = [
    pytest.mark.usefixtures("compiled_here", "tiles"),
    pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}"),
]

N, K = 100, 320
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NONE, GROUP, MX = Quantization(), Quantization("group", 128), Quantization("mx", 32)


@pytest.fixture
def tiles(compiled_here: None) -> None:
    if not has_path("amx"):
        pytest.skip("this machine has no amx")


def weight(block: tuple[int, int], scale: str = "f32", seed: int = 0) -> Weight:
    g = torch.Generator().manual_seed(seed)
    codes = torch.randn(N, K, generator=g).mul_(20).clamp(-448, 448).to(torch.float8_e4m3fn)
    shape = (-(-N // block[0]), -(-K // block[1]))
    if scale == "e8m0":
        return Weight(codes, torch.randint(110, 135, shape, generator=g, dtype=torch.uint8), block)
    return Weight(codes, torch.rand(shape, generator=g) + 0.01, block)


FORMS = {
    "block": (weight((128, 128)), GROUP),
    "block_e8m0": (weight((128, 128), "e8m0"), GROUP),
    "block_32": (weight((32, 256)), GROUP),
    "channel": (weight((1, K)), Quantization("group", K)),
    "tensor_static": (weight((N, K)), Quantization("static", scale=0.02)),
    "plain_block": (weight((128, 128)), NONE),
    "plain_channel": (weight((1, K)), NONE),
    "mx": (weight((1, 32), "e8m0"), MX),
    "mx_weight_only": (weight((1, 32), "e8m0"), NONE),
}


def run(w: Weight, x: torch.Tensor, q: Quantization, path: str = "amx", **rest) -> torch.Tensor:
    out = torch.full((x.shape[0], w.codes.shape[0]), torch.nan)
    return linear(x, w, None, out, quantization=q, path=path, **rest)


def scale_of(w: Weight) -> torch.Tensor:
    wide = w.scale.view(torch.float8_e8m0fnu).float() if w.scale.dtype == torch.uint8 else w.scale
    return wide.repeat_interleave(w.block[0], 0)[:N].repeat_interleave(w.block[1], 1)[:, :K]


def agree(out: torch.Tensor, plain: torch.Tensor, w: Weight, x: torch.Tensor) -> bool:
    """Both paths keep to the bound c * K * 2^-24 * S of float32 sums, so that they differ by twice that at most."""
    wide = (w.codes.float() * scale_of(w)).double().abs().nan_to_num(0.0)
    size = x.double().abs().nan_to_num(0.0, 0.0, 0.0) @ wide.t()
    same = (out == plain) | (out.isnan() & plain.isnan())
    return bool((same | ((out - plain).double().abs() <= 2 * 1.1 * (K * 2.0**-24 + 2.0**-22) * size)).all())


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_tiles_cannot_take_are_right_between_others(form: str, given: str) -> None:
    w, q = FORMS[form]
    x = torch.randn(300, K, generator=torch.Generator().manual_seed(1)).to(DTYPES[given])
    tame = run(w, x, q)
    wild = x.clone()
    wild[0, 3], wild[1, 4], wild[17] = torch.nan, torch.inf, 0.0
    wild[18] = torch.finfo(DTYPES[given]).tiny * torch.arange(K).to(DTYPES[given]) / K
    wild[40:60, ::7], wild[299] = torch.finfo(DTYPES[given]).max, torch.finfo(DTYPES[given]).smallest_normal
    touched = [0, 1, 17, 18, *range(40, 60), 299]
    rest = torch.tensor([row for row in range(300) if row not in touched])
    for m in (300, 18, 2, 1):
        out, plain = run(w, wild[:m], q), run(w, wild[:m], q, "vbmi")
        kept = rest[rest < m]
        assert torch.equal(out[kept], tame[kept])
        changed = torch.tensor([row for row in touched if row < m])
        assert torch.equal(out[changed].nan_to_num(7.0), plain[changed].nan_to_num(7.0)) or agree(
            out[changed], plain[changed], w, wild[changed]
        )


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-30, 1e30, torch.inf, torch.nan])
@pytest.mark.parametrize("form", ["block", "block_32", "channel", "tensor_static", "plain_block", "plain_channel"])
def test_every_scale_of_a_weight_is_applied(form: str, value: float) -> None:
    w, q = FORMS[form]
    scale = w.scale.clone()
    scale[-1, -1] = value
    changed = Weight(w.codes, scale, w.block)
    for m in (1, 40):
        x = torch.randn(m, K, generator=torch.Generator().manual_seed(2)).bfloat16()
        out, plain = run(changed, x, q), run(changed, x, q, "vbmi")
        assert agree(out, plain, changed, x)
        assert torch.equal(out.isfinite(), plain.isfinite())


@pytest.mark.parametrize("form", ["mx", "mx_weight_only"])
def test_every_e8m0_scale_is_applied(form: str) -> None:
    w, q = FORMS[form]
    for first in range(0, 256, 60):
        scale = w.scale.clone()
        scale[40, :] = torch.arange(first, first + 10).clamp(max=255).to(torch.uint8)
        scale[99, 9] = first
        changed = Weight(w.codes, scale, w.block)
        for m in (1, 40):
            x = torch.randn(m, K, generator=torch.Generator().manual_seed(2)).bfloat16()
            out, plain = run(changed, x, q), run(changed, x, q, "vbmi")
            assert agree(out, plain, changed, x)
            assert torch.equal(out.isfinite(), plain.isfinite())


def test_every_code_is_folded_with_its_scale_exactly() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).expand(64, 256).contiguous()
    for code in (87, 100, 127, 140, 167):
        w = Weight(every, torch.full((64, 8), code, dtype=torch.uint8), (1, 32))
        out = linear(torch.eye(256).bfloat16(), w, None, torch.full((256, 64), -7.0), path="amx")
        wanted = every.float() * 2.0 ** (code - 127)
        ok = wanted[0].isfinite()
        assert out.t()[:, ok].isnan().all(), "a NaN code reaches the whole column"
        kept = Weight(torch.where(ok, every.view(torch.uint8), 0).view(torch.float8_e4m3fn), w.scale, w.block)
        clean = linear(torch.eye(256).bfloat16(), kept, None, torch.full((256, 64), -7.0), path="amx")
        assert torch.equal(clean.t(), torch.where(ok, wanted, 0.0))


@pytest.mark.parametrize("form", FORMS)
def test_rows_have_the_same_bits_for_every_m_and_every_number_of_threads(form: str) -> None:
    w, q = FORMS[form]
    x = torch.randn(290, K, generator=torch.Generator().manual_seed(4))
    whole = run(w, x, q, threads=1)
    for m in (1, 15, 16, 17, 33, 257, 290):
        for threads in (1, 2, 5):
            assert torch.equal(run(w, x[:m], q, threads=threads), whole[:m]), (m, threads)


def test_wide_numbers_are_taken_apart_without_loss() -> None:
    w = Weight(torch.eye(64).repeat(1, 2).to(torch.float8_e4m3fn), torch.ones(1, 1), (64, 128))
    g = torch.Generator().manual_seed(5)
    for dtype, low, high in ((torch.float32, 40, 210), (torch.float16, 0, 31)):
        exponents = torch.randint(low, high, (50, 128), generator=g)
        if dtype == torch.float32:
            mantissas = torch.randint(0, 2**23, (50, 128), generator=g)
            x = (exponents << 23 | mantissas).to(torch.int32).view(torch.float32)
        else:
            x = (exponents << 10 | torch.randint(0, 2**10, (50, 128), generator=g)).to(torch.int16).view(dtype)
        x[:, 64:] = 0
        assert torch.equal(run(w, x, NONE), x[:, :64].float())
