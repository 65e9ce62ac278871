"""What csrc/cpu/fp8_linear.cpp makes of single numbers: codes widened, inputs read and quantized, results rounded."""

from __future__ import annotations

import pytest
import torch

from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import Quantization, Weight, linear
from kerneltable.ops.torch_fp8 import quantize_block, quantize_static, quantize_tensor, quantize_token
from kerneltable.ops.torch_mx import quantize_mx

pytestmark = [
    pytest.mark.usefixtures("compiled_here"),
    pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}"),
]

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def test_all_256_codes_are_widened_exactly(path: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for scale in (1.0, 2.0**-120, 3.0 * 2.0**100, 2.0**125, 0.0, -1.5, torch.inf):
        for m in (1, 3):
            weight = Weight(every.reshape(1, 256).t().contiguous().expand(256, 1), torch.tensor([[scale]]), (256, 1))
            out = linear(torch.ones(m, 1), weight, None, torch.full((m, 256), -7.0), path=path)
            wide = every.float() * torch.tensor(scale)
            assert torch.equal(out.nan_to_num(nan=12345.0), wide.nan_to_num(nan=12345.0).expand(m, 256)), (scale, m)


def test_all_256_codes_are_widened_exactly_along_k(path: str) -> None:
    raw = torch.arange(256, dtype=torch.uint8)
    for scale in (1.0, 0.3, 2.0**-126, 2.0**-130, 2.0**119, 3.0e38):
        wide = raw.view(torch.float8_e4m3fn).float() * torch.tensor(scale)
        kept = torch.where(wide.isfinite(), raw, 0).view(torch.float8_e4m3fn).expand(7, 256).contiguous()
        wanted = kept.float() * torch.tensor(scale)
        weight, picks = Weight(kept, torch.tensor([[scale]]), (7, 256)), torch.eye(256)
        together = linear(picks, weight, None, torch.full((256, 7), torch.nan), path=path)
        single = [linear(pick, weight, None, torch.full((1, 7), torch.nan), path=path) for pick in picks.split(1)]
        assert torch.equal(together.t(), wanted)
        assert torch.equal(torch.cat(single).t(), wanted)


def test_a_nan_code_reaches_its_own_column_alone(path: str) -> None:
    for k, at in ((640, 0), (640, 639), (33, 32), (1, 0)):
        raw = torch.zeros(9, k, dtype=torch.uint8)
        raw[4, at] = 0xFF
        weight = Weight(raw.view(torch.float8_e4m3fn), torch.ones(1, 1), (9, k))
        for m in (1, 6):
            out = linear(torch.ones(m, k), weight, None, torch.full((m, 9), 3.0), path=path)
            assert out.isnan().nonzero()[:, 1].unique().tolist() == [4]
            assert (out.nan_to_num(0.0) == 0).all()


QUANTIZERS = {
    "group": (Quantization("group", 32), lambda x: quantize_block(x, 32)),
    "group_of_48": (Quantization("group", 48), lambda x: quantize_block(x, 48)),
    "token": (Quantization("group", 256), quantize_token),
    "token_bound": (Quantization("group", 256, upper=0.004), lambda x: quantize_token(x, torch.tensor(0.004))),
    "tensor": (Quantization("tensor"), quantize_tensor),
    "tensor_bound": (Quantization("tensor", upper=0.001), lambda x: quantize_tensor(x, torch.tensor(0.001))),
    "static": (Quantization("static", scale=0.02), lambda x: quantize_static(x, torch.tensor(0.02))),
    "mx": (Quantization("mx", 32), quantize_mx),
}
SPECIAL = {
    "normal": torch.randn(6, 256, generator=torch.Generator().manual_seed(3)),
    "wide": torch.randn(6, 256, generator=torch.Generator().manual_seed(4)) * 2.0 ** torch.arange(-150, 106),
    "zero": torch.zeros(2, 256),
    "tiny": torch.full((2, 256), 1e-38),
    "subnormal": torch.arange(512).reshape(2, 256).to(torch.int32).view(torch.float32),
    "halfway": torch.tensor([448.0] + [v + 0.5 ** (11 - i) for i in range(1, 6) for v in range(51)]).reshape(1, 256),
    "nan": torch.ones(2, 256).index_fill_(1, torch.tensor([5]), torch.nan),
    "infinite": torch.ones(2, 256).index_fill_(1, torch.tensor([200]), -torch.inf),
    "largest": torch.full((2, 256), torch.finfo(torch.float32).max),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("mode", QUANTIZERS)
def test_inputs_are_quantized_to_the_same_numbers_as_in_torch(mode: str, name: str, path: str) -> None:
    quantization, in_torch = QUANTIZERS[mode]
    x = SPECIAL[name]
    identity = Weight(torch.eye(256).to(torch.float8_e4m3fn), torch.ones(1, 1), (256, 256))
    values, scale = in_torch(x)
    wide = scale.view(torch.float8_e8m0fnu).float() if scale.dtype == torch.uint8 else scale
    group = quantization.group if quantization.mode in ("group", "mx") else 256
    wide = wide.reshape(-1, 1).expand(x.shape[0], 1) if wide.dim() == 0 else wide
    wanted = values.float() * wide.repeat_interleave(group, 1)[:, :256]
    rows = [linear(x, identity, None, torch.full((len(x), 256), -7.0), quantization=quantization, path=path)]
    if quantization.mode != "tensor":
        rows.append(torch.cat([linear(r, identity, None, torch.empty(1, 256), quantization=quantization, path=path)
                               for r in x.split(1)]))  # fmt: skip
    spoiled = ~wanted.isfinite().all(1)
    for out in rows:
        assert torch.equal(out[~spoiled], wanted[~spoiled])
        assert out[spoiled].isnan().all()


ROUNDED = torch.cat([
    torch.randint(0, 2**31 - 1, (4096,), generator=torch.Generator().manual_seed(6), dtype=torch.int32).view(
        torch.float32
    ),
    torch.arange(0, 2**16, 5, dtype=torch.int32).to(torch.int16).view(torch.float16).float(),
    (torch.arange(1024, 2048) + 0.5) * 2.0**-10,  # halfway between two numbers of f16
    (torch.arange(0, 64) + 0.5) * 2.0**-24,  # and between two of its subnormals
    (torch.arange(128, 256) + 0.5) * 2.0**-3,  # halfway between two numbers of bf16
    torch.tensor([65504.0, 65519.996, 65520.0, 65536.0, 2.0**-25, 2.0**-14, 3.0e38, 3.4e38]),
])  # fmt: skip


@pytest.mark.parametrize("output", ["bf16", "f16"])
def test_results_are_rounded_to_the_output_as_torch_rounds(output: str, path: str) -> None:
    one = Weight(torch.ones(1, 1).to(torch.float8_e4m3fn), torch.ones(1, 1), (1, 1))
    finite = ROUNDED[ROUNDED.isfinite()]
    x = torch.cat([finite, -finite]).unsqueeze(1)
    out = linear(x, one, None, torch.full(x.shape, torch.nan, dtype=DTYPES[output]), path=path)
    assert torch.equal(out, x.to(DTYPES[output]))


@pytest.mark.parametrize("given", ["bf16", "f16"])
def test_every_16_bit_input_is_read_exactly(given: str, path: str) -> None:
    one = Weight(torch.ones(1, 1).to(torch.float8_e4m3fn), torch.ones(1, 1), (1, 1))
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(DTYPES[given]).unsqueeze(1)
    x = every[every[:, 0].isfinite()]
    assert torch.equal(linear(x, one, None, torch.full(x.shape, torch.nan), path=path), x.float())
    rest = every[~every[:, 0].isfinite()]
    assert not linear(rest, one, None, torch.zeros(rest.shape), path=path).isfinite().any()
