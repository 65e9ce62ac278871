"""csrc/cpu/fp8_linear.cpp: every scheme, shape, dtype and instruction path against float64, element by element."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from kerneltable.errors import KernelInputError, KernelUnavailable
from kerneltable.model import Problem
from kerneltable.ops import cpp
from kerneltable.ops.cpu_fp8 import Weight, has_path, linear
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64

pytestmark = [
    pytest.mark.usefixtures("compiled_here"),
    pytest.mark.skipif(isinstance(cpp.find_compiler(), str), reason=f"no C++ compiler: {cpp.find_compiler()}"),
]

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SCALES = {"f32": torch.float32, "bf16": torch.bfloat16, "e8m0": torch.float8_e8m0fnu}
M, N, K = (1, 2, 7, 16, 17, 129), (1, 8, 16, 129, 576), (1, 16, 17, 130, 640, 3884)


def kernel_class():
    from kerneltable.kernels.cpu_fp8 import Kernel

    return Kernel


def codes(n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, k, generator=generator).mul_(20).clamp(-448, 448).to(torch.float8_e4m3fn)


def scale_of(shape: tuple[int, ...], form: str, generator: torch.Generator) -> torch.Tensor:
    if form == "e8m0":
        raw = torch.randint(117, 130, shape, generator=generator, dtype=torch.uint8)
        return raw.view(torch.float8_e8m0fnu)
    return (torch.rand(shape, generator=generator) * 0.02 + 0.001).to(SCALES[form])


def layer(problem: Problem, scale: str, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = {"tensor": (), "channel": (problem.n, 1)}.get(problem.weight_granularity or "", ())
    if problem.weight_block is not None:
        shape = (-(-problem.n // problem.weight_block[0]), -(-problem.k // problem.weight_block[1]))
    tensors = {"weight": codes(problem.n, problem.k, g), "weight_scale": scale_of(shape, scale, g)}
    if problem.input_scaling == "static":
        tensors["input_scale"] = torch.tensor([0.011])
    return tensors


def problem_of(
    scheme: str, weight: str, block: tuple[int, int] | None, given: str, scaling: str | None, **rest
) -> Problem:
    return Problem(
        scheme,
        weight_granularity=weight,
        weight_block=block,
        weight_scale="f32",
        input_granularity=given,
        input_scaling=scaling,
        **rest,
    )


VARIANTS = {
    "block_w8a8": ("fp8_block_w8a8", "block", (128, 128), "block", "dynamic", "f32"),
    "block_w8a8_e8m0": ("fp8_block_w8a8", "block", (128, 128), "block", "dynamic", "e8m0"),
    "block_w8a8_48x80": ("fp8_block_w8a8", "block", (48, 80), "block", "dynamic", "bf16"),
    "w8a8_channel_token": ("fp8_w8a8", "channel", None, "token", "dynamic", "f32"),
    "w8a8_tensor_tensor": ("fp8_w8a8", "tensor", None, "tensor", "dynamic", "f32"),
    "w8a8_tensor_static": ("fp8_w8a8", "tensor", None, "tensor", "static", "bf16"),
    "w8a16_tensor": ("w8a16_fp8", "tensor", None, "none", None, "f32"),
    "w8a16_channel": ("w8a16_fp8", "channel", None, "none", None, "bf16"),
    "w8a16_block": ("w8a16_fp8", "block", (128, 128), "none", None, "f32"),
    "w8a16_block_3x5": ("w8a16_fp8", "block", (3, 5), "none", None, "f32"),
    "mxfp8": ("mxfp8", "block", (1, 32), "block", "dynamic", "e8m0"),
    "mxfp8_weight_only": ("mxfp8", "block", (1, 32), "none", None, "e8m0"),
}


def call(problem: Problem, tensors: dict[str, torch.Tensor], x: torch.Tensor, bias=None, *, path="auto", threads=1):
    """The adapter's own weight and quantization, with the path forced and the output poisoned."""
    bound = kernel_class()(problem, **tensors)
    out = torch.full((x.shape[0], problem.n), torch.nan, dtype=DTYPES[problem.output])
    wide = None if bias is None else bias.float()
    product = bound._product
    return linear(x, product.weight, wide, out, quantization=product.quantization, path=path, threads=threads)


def error(problem: Problem, tensors: dict[str, torch.Tensor], x: torch.Tensor, bias, out: torch.Tensor) -> float:
    ref, s = reference64(problem, tensors, x, bias, quantizes_input(problem, "native"))
    return error_over_bound(out, ref, s, problem.k, problem.output, "f32")


@pytest.mark.parametrize("k", K)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_scheme_and_shape_is_within_the_bound(variant: str, k: int, path: str) -> None:
    *form, scale = VARIANTS[variant]
    for n in N if k < 3000 else (1, 129):
        given, output = list(DTYPES)[n % 3], list(DTYPES)[k % 3]
        problem = problem_of(*form, n=n, k=k, input=given, output=output, bias=n % 2 == 0)
        tensors = layer(problem, scale, seed=n + k)
        all_rows = torch.randn(max(M), k, generator=torch.Generator().manual_seed(k)).to(DTYPES[given])
        bias = torch.randn(n).to(DTYPES[output]) if problem.bias else None
        for m in M:
            x = all_rows[:m]
            out = call(problem, tensors, x, bias, path=path)
            assert error(problem, tensors, x, bias, out) <= 1, (n, m)


@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_every_pair_of_dtypes_is_within_the_bound(given: str, output: str, path: str) -> None:
    for variant in ("block_w8a8", "w8a8_channel_token", "w8a16_tensor", "mxfp8"):
        *form, scale = VARIANTS[variant]
        problem = problem_of(*form, n=131, k=640, input=given, output=output, bias=True)
        tensors = layer(problem, scale)
        x, bias = torch.randn(19, 640).to(DTYPES[given]), torch.randn(131)
        assert error(problem, tensors, x, bias, call(problem, tensors, x, bias, path=path)) <= 1


@pytest.mark.parametrize("m", [1, 5, 40])
def test_integer_data_is_bit_equal_to_float64(m: int, path: str) -> None:
    g = torch.Generator().manual_seed(1)
    for k in (17, 640, 2049):
        weight = torch.randint(-4, 5, (37, k), generator=g).to(torch.float8_e4m3fn)
        problem = problem_of("w8a16_fp8", "block", (16, 32), "none", None, n=37, k=k, output="f32")
        scale = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (3, -(-k // 32)), generator=g)]
        x = torch.randint(-4, 5, (m, k), generator=g).to(torch.bfloat16)
        tensors = {"weight": weight, "weight_scale": scale}
        bias = torch.randint(-8, 9, (37,), generator=g).float()
        ref, _ = reference64(problem, tensors, x, bias, False)
        assert torch.equal(call(problem, tensors, x, bias, path=path).double(), ref)


def test_threads_and_rows_do_not_change_a_bit(path: str) -> None:
    for variant, (*form, scale) in VARIANTS.items():
        problem = problem_of(*form, n=600, k=1100, input="f32", output="f32")
        tensors = layer(problem, scale)
        x = torch.randn(300, 1100)
        whole = call(problem, tensors, x, path=path, threads=1)
        for threads in (2, 5):
            assert torch.equal(call(problem, tensors, x, path=path, threads=threads), whole)
        if variant != "w8a8_tensor_tensor":
            for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 97, 257):
                assert torch.equal(call(problem, tensors, x[:m], path=path, threads=2), whole[:m])


def test_few_rows_of_more_columns_than_are_scaled_at_once_have_the_bits_of_a_batch(path: str) -> None:
    for variant in ("block_w8a8", "w8a16_channel", "mxfp8", "mxfp8_weight_only", "w8a16_block_3x5"):
        *form, scale = VARIANTS[variant]
        problem = problem_of(*form, n=13, k=8192 + 640 + 50, input="bf16", output="f32")
        tensors = layer(problem, scale)
        x = torch.randn(20, problem.k).bfloat16()
        out = call(problem, tensors, x, path=path)
        assert error(problem, tensors, x, None, out) <= 1
        for m in range(1, 9):
            assert torch.equal(torch.cat([call(problem, tensors, rows, path=path) for rows in x.split(m)]), out)


def test_byte_look_ups_give_every_bit_of_plain_avx512() -> None:
    if not has_path("vbmi"):
        pytest.skip("this machine has no vbmi")
    for *form, scale in VARIANTS.values():
        problem = problem_of(*form, n=67, k=1100, input="f32", output="f32")
        tensors = layer(problem, scale)
        for m in (1, 6):
            x = torch.randn(m, 1100)
            plain = call(problem, tensors, x, path="avx512")
            assert torch.equal(call(problem, tensors, x, path="vbmi"), plain)


def test_two_threads_of_python_may_call_at_once() -> None:
    problem = problem_of(*VARIANTS["block_w8a8"][:-1], n=640, k=1024, output="f32")
    tensors, x = layer(problem, "f32"), torch.randn(8, 1024)
    wanted = call(problem, tensors, x)
    wrong: list[int] = []

    def work() -> None:
        for turn in range(50):
            if not torch.equal(call(problem, tensors, x, threads=2), wanted):
                wrong.append(turn)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong


def test_threads_are_there_for_the_next_call_awake_or_asleep() -> None:
    problem = problem_of(*VARIANTS["block_w8a8"][:-1], n=640, k=1024, output="f32")
    tensors, x = layer(problem, "f32"), torch.randn(8, 1024)
    wanted = call(problem, tensors, x)
    for pause in (0.0, 1e-4, 2e-4, 5e-4, 5e-3) * 20:
        time.sleep(pause)
        assert torch.equal(call(problem, tensors, x, threads=3), wanted)


def test_a_forked_child_computes_the_same_with_threads_of_its_own() -> None:
    problem = problem_of(*VARIANTS["w8a16_channel"][:-1], n=640, k=1024, output="f32")
    bound = kernel_class()(problem, **layer(problem, "bf16"))
    x, out = torch.randn(2, 1024), torch.empty(2, 640)
    wanted = linear(x, bound._product.weight, None, out.clone(), threads=2)
    child = os.fork()
    if child == 0:
        same = torch.equal(linear(x, bound._product.weight, None, out, threads=2), wanted)
        tasks = Path("/proc/self/task")
        helped = not tasks.is_dir() or len(list(tasks.iterdir())) > 1
        os._exit(0 if same and helped else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_strided_rows_and_a_sliced_weight_are_read_where_they_lie() -> None:
    g = torch.Generator().manual_seed(5)
    x, wide = torch.randn(9, 700, generator=g)[::2, :640], codes(20, 700, g)
    scale = torch.rand(1, 1)
    dense = linear(x.contiguous(), Weight(wide[::2, :640].contiguous(), scale, (10, 640)), None, torch.empty(5, 10))
    weight = Weight(wide[::2, :640], scale, (10, 640))
    assert torch.equal(linear(x, weight, None, torch.full((5, 10), torch.nan)), dense)
    assert torch.equal(linear(x[:1], weight, None, torch.full((1, 10), torch.nan)), dense[:1])


def test_flushing_of_subnormals_by_the_caller_changes_nothing() -> None:
    weight = Weight(torch.ones(600, 640).to(torch.float8_e4m3fn), torch.ones(1, 1), (600, 640))
    x = torch.full((4, 640), 1e-42)
    wanted = linear(x, weight, None, torch.empty(4, 600), threads=2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        out = linear(x, weight, None, torch.empty(4, 600), threads=2)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(out, wanted)
    assert (wanted > 0).all()


@pytest.mark.parametrize(("m", "n", "k"), [(0, 8, 16), (3, 8, 0), (1, 0, 16)])
def test_empty_sizes_give_zeros_or_nothing(m: int, n: int, k: int) -> None:
    weight = Weight(torch.zeros(n, k).to(torch.float8_e4m3fn), torch.ones(-(-n // 8), -(-k // 16)), (8, 16))
    out = linear(torch.ones(m, k), weight, torch.full((n,), 2.0), torch.full((m, n), torch.nan))
    assert torch.equal(out, torch.full((m, n), 2.0))


def valid() -> dict:
    weight = Weight(torch.zeros(8, 32).to(torch.float8_e4m3fn), torch.ones(1, 1), (8, 32))
    return {"x": torch.ones(2, 32), "weight": weight, "bias": None, "out": torch.empty(2, 8)}


BAD = {
    "x of another k": {"x": torch.ones(2, 31)},
    "x with strided columns": {"x": torch.ones(32, 2).t()},
    "x of float64": {"x": torch.ones(2, 32, dtype=torch.float64)},
    "out of another n": {"out": torch.empty(2, 9)},
    "out with gaps": {"out": torch.empty(2, 16)[:, ::2]},
    "bias of another n": {"bias": torch.ones(7)},
    "bias of bf16": {"bias": torch.ones(8, dtype=torch.bfloat16)},
    "scale of another shape": {"weight": Weight(valid()["weight"].codes, torch.ones(2, 1), (8, 32))},
    "codes of another dtype": {"weight": Weight(torch.zeros(8, 32), torch.ones(1, 1), (8, 32))},
    "x on another device": {"x": torch.ones(2, 32, device="meta")},
}


def test_tensors_that_fit_are_accepted() -> None:
    linear(**valid())


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_do_not_fit_are_refused(case: str) -> None:
    with pytest.raises(KernelInputError, match="cpu_fp8: "):
        linear(**{**valid(), **BAD[case]})


def test_an_unsupported_path_is_a_reason() -> None:
    missing = [name for name in ("avx2", "avx512", "vbmi") if not has_path(name)]
    if not missing:
        pytest.skip("this machine has every path")
    with pytest.raises(KernelUnavailable, match=missing[0]):
        linear(**valid(), path=missing[0])


def test_bias_is_added_before_the_one_rounding() -> None:
    weight = Weight(torch.ones(1, 1).to(torch.float8_e4m3fn), torch.ones(1, 1), (1, 1))
    x, bias = torch.tensor([[256.0 + 1.0]]), torch.tensor([1.0])  # 257 rounds to 256 in bf16, 258 is a number of bf16
    out = linear(x, weight, bias, torch.empty(1, 1, dtype=torch.bfloat16))
    assert out.item() == 258


def test_other_memory_through_the_data_of_a_weight_does_not_reach_the_compiled_code() -> None:
    problem = problem_of(*VARIANTS["w8a16_channel"][:-1], n=37, k=64, output="f32")
    tensors, x = layer(problem, "f32"), torch.randn(3, 64).bfloat16()
    kernel = kernel_class()(problem, **tensors)
    before = kernel(x, None)
    for name, tensor in tensors.items():
        tensor.data = torch.empty(0, dtype=tensor.dtype)
        assert torch.equal(kernel(x, None), before), name


@pytest.mark.parametrize("left", [0, 16])
def test_a_weight_whose_memory_was_freed_is_refused(left: int) -> None:
    problem = problem_of(*VARIANTS["w8a16_channel"][:-1], n=37, k=64, output="f32")
    tensors, x = layer(problem, "f32"), torch.randn(3, 64).bfloat16()
    kernel = kernel_class()(problem, **tensors)
    storage = tensors["weight"].untyped_storage()
    whole, size = tensors["weight"].clone(), storage.nbytes()
    before = kernel(x, None)
    storage.resize_(left)
    with pytest.raises(KernelInputError, match="memory was freed"):
        kernel(x, None)
    storage.resize_(size)
    tensors["weight"].copy_(whole)
    assert torch.equal(kernel(x, None), before)
