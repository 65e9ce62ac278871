"""The libraries of the field as kernels: each is called as its own signature wants, and the numbers are right."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import library_stand_ins as fake
import pytest
import torch
from torch._subclasses import FakeTensorMode

from kerneltable.errors import KernelInputError, KernelUnavailable
from kerneltable.kernels import deepgemm_fp8_block, registry
from kerneltable.model import Problem
from kerneltable.ops import installed
from kerneltable.ops.fnuz import to_fnuz
from kerneltable.ops.installed import library_function, library_op, on_one_device
from kerneltable.ops.vllm_marlin import pack_scale
from kerneltable.run.layer_data import EXACT_LIMIT, exact_layer, random_layer
from kerneltable.run.oracle import error_over_bound, reference64
from kerneltable.select import complete, device, select
from kerneltable.table import load_table

TABLE = load_table()
PACKAGES = {
    "deepgemm_fp8_block": "deep_gemm",
    "sgl_deepgemm_fp8_block": "deep_gemm",
    "flashinfer_fp8_block_sm90": "flashinfer",
    "flashinfer_mxfp8": "flashinfer",
    "vllm_cutlass_fp8_block": "vllm",
    "vllm_cutlass_fp8": "vllm",
    "vllm_marlin_fp8": "vllm",
    "vllm_marlin_fp8_f16": "vllm",
    "humming_w8a16": "humming",
    "aiter_fp8_block": "aiter",
    "xpu_fp8_gemm_block": "vllm_xpu_kernels",
    "xpu_fp8_gemm": "vllm_xpu_kernels",
}
RAN = {"flashinfer_fp8_block_sm90", "humming_w8a16", "sgl_deepgemm_fp8_block"}
"""On an H200."""

SHAPES = [(1, 128, 128), (5, 256, 640)]


def problem_of(scheme: str, m: int, n: int, k: int, **more: Any) -> Problem:
    return complete(TABLE.schemes[scheme], Problem(scheme, m=m, n=n, k=k, **more))


def check(kernel: str, problem: Problem) -> None:
    """Random data within the bound of the kernel's row, integer data bit-equal to float64; no tensor is changed."""
    row = TABLE.kernels[kernel]
    for exact, make in ((False, random_layer), (True, exact_layer)):
        data = make(problem, torch.Generator().manual_seed(problem.k + problem.n))
        given = {name: data.tensors.get(name) for name in row.parameters}
        before = {name: tensor.clone() for name, tensor in data.tensors.items()}
        out = registry.load(kernel)(problem.at(None), **given)(data.x, None)
        assert (out.shape, out.dtype) == ((problem.m, problem.n), dtype_of(problem.output))
        assert out.is_contiguous()
        for name, tensor in before.items():
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), data.tensors[name].reshape(-1).view(torch.uint8))
        ref, magnitude = reference64(problem, data.tensors, data.x, None, True)
        if exact:
            assert magnitude.max() < EXACT_LIMIT
            assert torch.equal(out.double(), ref.to(out.dtype).double())
        else:
            assert error_over_bound(out, ref, magnitude, problem.k, problem.output, row.numerics.accumulator) <= 1


def dtype_of(name: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[name]


# --- Each library with its stand-in --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (3, 192, 256)])
@pytest.mark.parametrize("kernel", ["deepgemm_fp8_block", "sgl_deepgemm_fp8_block"])
def test_deepgemm_gets_pairs_of_codes_and_float_scales(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int, scale: str, kernel: str
) -> None:
    fake.install(monkeypatch, "deep_gemm", fp8_gemm_nt=fake.fp8_gemm_nt)
    check(kernel, problem_of("fp8_block_w8a8", m, n, k, weight_scale=scale))


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (3, 192, 256)])
def test_flashinfer_block_gets_input_scales_with_rows_together_and_padded_to_4(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int, scale: str
) -> None:
    fake.install(monkeypatch, "flashinfer.gemm", fp8_blockscale_gemm_sm90=fake.fp8_blockscale_gemm_sm90)
    check("flashinfer_fp8_block_sm90", problem_of("fp8_block_w8a8", m, n, k, weight_scale=scale))


@pytest.mark.parametrize("output", ["bf16", "f16"])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (130, 160, 160)])
def test_flashinfer_mxfp8_gets_a_transposed_view_and_tiled_scales(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int, output: str
) -> None:
    fake.install(monkeypatch, "flashinfer", mm_mxfp8=fake.mm_mxfp8)
    check("flashinfer_mxfp8", problem_of("mxfp8", m, n, k, output=output))


@pytest.mark.parametrize("output", ["bf16", "f16"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_cutlass_gets_block_scales_with_rows_together(m: int, n: int, k: int, output: str) -> None:
    with fake.registered("_C", cutlass_scaled_mm=(fake.CUTLASS, fake.cutlass_scaled_mm)):
        check("vllm_cutlass_fp8_block", problem_of("fp8_block_w8a8", m, n, k, output=output))


@pytest.mark.parametrize("weight", ["tensor", "channel"])
@pytest.mark.parametrize(("given", "scaling"), [("token", "dynamic"), ("tensor", "dynamic"), ("tensor", "static")])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (3, 48, 80)])
def test_cutlass_gets_one_scale_or_one_a_row(m: int, n: int, k: int, weight: str, given: str, scaling: str) -> None:
    details = {"weight_granularity": weight, "input_granularity": given, "input_scaling": scaling}
    with fake.registered("_C", cutlass_scaled_mm=(fake.CUTLASS, fake.cutlass_scaled_mm)):
        check("vllm_cutlass_fp8", problem_of("fp8_w8a8", m, n, k, **details))


MARLINS = {
    "new": {
        "marlin_gemm": (fake.MARLIN, fake.marlin_gemm),
        "gptq_marlin_repack": (fake.REPACK, fake.gptq_marlin_repack),
    },
    "old": {
        "gptq_marlin_gemm": (fake.OLD_MARLIN, fake.old_marlin_gemm),
        "gptq_marlin_repack": (fake.OLD_REPACK, fake.gptq_marlin_repack),
    },
}


@pytest.mark.parametrize("version", MARLINS)
@pytest.mark.parametrize(("kernel", "dtype"), [("vllm_marlin_fp8", "bf16"), ("vllm_marlin_fp8_f16", "f16")])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("scale", ["f32", "e8m0"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 128), (5, 192, 640)])
def test_marlin_gets_repacked_words_and_raised_scales(
    m: int, n: int, k: int, scale: str, granularity: str, kernel: str, dtype: str, version: str
) -> None:
    details = {"weight_granularity": granularity, "weight_scale": scale, "input": dtype, "output": dtype}
    with fake.registered("_C", **MARLINS[version]):
        check(kernel, problem_of("w8a16_fp8", m, n, k, **details))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("scale", ["f32", "bf16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 256, 128), (5, 256, 640)])
def test_humming_gets_words_and_scales_by_rows(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int, granularity: str, scale: str
) -> None:
    humming(monkeypatch)
    check("humming_w8a16", problem_of("w8a16_fp8", m, n, k, weight_granularity=granularity, weight_scale=scale))


def humming(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install(monkeypatch, "humming.schema", HummingWeightSchema=fake.HummingWeightSchema)
    prepare = fake.prepare_and_transform_humming_tensors
    fake.install(monkeypatch, "humming.transform", prepare_and_transform_humming_tensors=prepare)
    fake.install(monkeypatch, "humming.forward", humming_forward=fake.humming_forward)


@pytest.mark.parametrize("native", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_aiter_gets_codes_in_the_chips_own_fp8(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int, native: torch.dtype
) -> None:
    fake.install(monkeypatch, "aiter", **fake.aiter(native))
    check("aiter_fp8_block", problem_of("fp8_block_w8a8", m, n, k))


def test_aiter_on_a_chip_with_yet_another_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install(monkeypatch, "aiter", **fake.aiter(torch.float8_e5m2))
    with pytest.raises(KernelUnavailable, match=r"must be e4m3fn or e4m3fnuz; found torch\.float8_e5m2"):
        bound("aiter_fp8_block")


@pytest.mark.parametrize("output", ["bf16", "f16"])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (3, 144, 256), (3, 192, 256)])
def test_onednn_gets_a_view_and_transposed_contiguous_block_scales(m: int, n: int, k: int, output: str) -> None:
    with fake.registered("_xpu_C", fp8_gemm=(fake.XPU, fake.fp8_gemm)):
        check("xpu_fp8_gemm_block", problem_of("fp8_block_w8a8", m, n, k, output=output))


@pytest.mark.parametrize("weight", ["tensor", "channel"])
@pytest.mark.parametrize(("given", "scaling"), [("token", "dynamic"), ("tensor", "dynamic"), ("tensor", "static")])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (3, 48, 80)])
def test_onednn_gets_one_scale_or_one_a_row(m: int, n: int, k: int, weight: str, given: str, scaling: str) -> None:
    details = {"weight_granularity": weight, "input_granularity": given, "input_scaling": scaling}
    with fake.registered("_xpu_C", fp8_gemm=(fake.XPU, fake.fp8_gemm)):
        check("xpu_fp8_gemm", problem_of("fp8_w8a8", m, n, k, **details))


# --- What is missing or does not fit is a reason -------------------------------------------------------------------


def bound(kernel: str, code: int = 0x38, scale: float = 1.0) -> Any:
    """The kernel on a small layer of its own scheme, every weight code and every scale the same."""
    row = TABLE.kernels[kernel]
    scheme = next(p.values[0] for p in row.accepts if p.key == "accepts.schemes")
    dtype = "f16" if kernel.endswith("_f16") else "bf16"
    problem = problem_of(str(scheme), 1, 256, 128, input=dtype, output=dtype)
    tensors = dict(random_layer(problem, torch.Generator()).tensors)
    tensors["weight"] = torch.full((256, 128), code, dtype=torch.uint8).view(torch.float8_e4m3fn)
    if problem.weight_scale == "f32":
        tensors["weight_scale"] = torch.full_like(tensors["weight_scale"], scale)
    return registry.load(kernel)(problem, **{name: tensors.get(name) for name in row.parameters})


@pytest.mark.parametrize("kernel", PACKAGES)
def test_a_library_that_is_not_there_is_a_reason_and_not_an_import_error(kernel: str) -> None:
    if find_spec(PACKAGES[kernel]) is not None:
        pytest.skip(f"{PACKAGES[kernel]} is installed here")
    with pytest.raises(KernelUnavailable) as caught:
        bound(kernel)
    assert "install" in str(caught.value)
    assert PACKAGES[kernel].replace("_", "-").split("-")[0] in str(caught.value)


def test_a_library_that_breaks_at_import_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_library.py").write_text("raise OSError('libcudart.so.99: cannot open\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KernelUnavailable, match=r"broken_library: cannot be imported \(libcudart.so.99: cannot open\)"):
        library_function("broken_library", "f", "broken")


def test_a_library_without_the_function_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install(monkeypatch, "deep_gemm", gemm_fp8_fp8_bf16_nt=print)
    with pytest.raises(KernelUnavailable, match=r"deep_gemm: wanted fp8_gemm_nt; found none; take a version"):
        bound("deepgemm_fp8_block")


def test_a_library_that_keeps_to_one_device_is_refused_on_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_kept_devices", cache(dict))
    cpu, zero, one = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))
    for place in (cpu, one, one, cpu):
        with on_one_device("deep_gemm", place):
            pass
    said = "one device of a process, cuda:1 here; found cuda:0; give cuda:0 a"
    with pytest.raises(KernelUnavailable, match=said), on_one_device("deep_gemm", zero):
        pytest.fail("the block was entered")
    with on_one_device("another", zero):
        pass


def test_of_two_devices_bound_at_the_same_time_one_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_kept_devices", cache(dict))
    zero, one = torch.device("cuda:0"), torch.device("cuda:1")
    said = pytest.raises(KernelUnavailable, match="cuda:1 here; found cuda:0")
    with said, on_one_device("deep_gemm", zero), on_one_device("deep_gemm", one):
        pass


@pytest.mark.parametrize("kernel", ["deepgemm_fp8_block", "sgl_deepgemm_fp8_block"])
def test_a_device_for_which_binding_failed_is_not_the_one_kept_to(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    fake.install(monkeypatch, "deep_gemm", fp8_gemm_nt=fake.fp8_gemm_nt)
    monkeypatch.setattr(installed, "_kept_devices", cache(dict))
    monkeypatch.setattr(deepgemm_fp8_block, "input_quantizer", lambda *_, **__: None)
    problem = problem_of("fp8_block_w8a8", 1, 256, 128).at(None)

    def bound_on(place: str) -> None:
        with FakeTensorMode():
            weight = torch.empty(256, 128, device=place, dtype=torch.float8_e4m3fn)
            registry.load(kernel)(problem, weight=weight, weight_scale=torch.empty(2, 1, device=place))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as context:
        context.setattr(deepgemm_fp8_block, "input_quantizer", full)
        with pytest.raises(torch.OutOfMemoryError):
            bound_on("cuda:0")
    bound_on("cuda:1")
    with pytest.raises(KernelUnavailable, match="cuda:1 here; found cuda:0"):
        bound_on("cuda:0")


def test_an_op_is_found_in_the_files_of_an_installed_package_that_was_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "compiled_library"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('never run')")
    (package / "_C.abi3.so").write_bytes(b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KernelUnavailable, match=r"compiled_library: _C.abi3.so cannot be loaded \("):
        library_op(("compiled_library_C::f",), (), "compiled_library")
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    with pytest.raises(KernelUnavailable, match=r"compiled_library_C::f: not registered"):
        library_op(("compiled_library_C::f",), (), "compiled_library")
    assert loaded == [str(package / "_C.abi3.so")]


def test_an_op_with_other_arguments_is_a_reason() -> None:
    schema = "(Tensor(a!) out, Tensor a, Tensor b, Tensor scale) -> ()"
    with (
        fake.registered("_C", cutlass_scaled_mm=(schema, print)),
        pytest.raises(KernelUnavailable, match=r"wanted arguments a_scales, b_scales, bias; found out, a, b, scale"),
    ):
        bound("vllm_cutlass_fp8")


def test_a_marlin_op_with_an_argument_that_nobody_knows_is_a_reason() -> None:
    schema = fake.MARLIN.replace("bool is_zp_float", "bool is_zp_float, int flavour")
    ops = MARLINS["new"] | {"marlin_gemm": (schema, print)}
    with fake.registered("_C", **ops), pytest.raises(KernelUnavailable, match=r"argument flavour \(int\) is not known"):
        bound("vllm_marlin_fp8")


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("kernel", ["vllm_marlin_fp8", "vllm_marlin_fp8_f16", "humming_w8a16"])
def test_a_kernel_that_would_read_nan_as_a_number_does_not_take_it(
    monkeypatch: pytest.MonkeyPatch, kernel: str, code: int
) -> None:
    humming(monkeypatch)
    with fake.registered("_C", **MARLINS["new"]):
        bound(kernel, code=0x7E)
        with pytest.raises(KernelUnavailable, match="weight: has NaN codes"):
            bound(kernel, code=code)


@pytest.mark.parametrize(
    ("kernel", "fits", "beyond"),
    [
        ("vllm_marlin_fp8", 255.0, 256.0),
        ("vllm_marlin_fp8", 2.0**-126, 2.0**-149),
        ("vllm_marlin_fp8_f16", 255.0, 256.0),
        ("vllm_marlin_fp8_f16", 2.0**-22, 2.0**-23),
        ("humming_w8a16", 2.0**-126, 2.0**-127),
    ],
)
def test_a_scale_that_the_packed_type_cannot_hold_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, kernel: str, fits: float, beyond: float
) -> None:
    humming(monkeypatch)
    with fake.registered("_C", **MARLINS["new"]):
        bound(kernel, scale=fits)
        with pytest.raises(KernelUnavailable, match="weight_scale"):
            bound(kernel, scale=beyond)


def test_packed_marlin_scales_are_the_inverse_of_the_exponent_that_is_left_out() -> None:
    scale = torch.arange(1, 65, dtype=torch.float32) / 64
    packed = pack_scale(scale, "channel", 64, torch.float16)
    assert packed.shape == (1, 64)
    assert sorted(packed.flatten().tolist()) == [4.0 * i for i in range(1, 65)]
    assert packed[0, :8].tolist() == [4.0 * (1 + i) for i in (0, 1, 8, 9, 16, 17, 24, 25)]


@pytest.mark.parametrize("kernel", PACKAGES)
def test_a_bias_is_never_dropped_in_silence(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    adapter = registry.load(kernel)
    with pytest.raises(KernelInputError, match="bias: this kernel takes none"):
        adapter.__call__(adapter.__new__(adapter), torch.zeros(1, 256), torch.zeros(256))


# --- e4m3fnuz ------------------------------------------------------------------------------------------------------


def test_each_of_the_256_codes_becomes_the_same_number_at_twice_the_scale() -> None:
    tables = json.loads((Path(__file__).parents[1] / "data" / "fp8_code_tables.json").read_text())
    fn, fnuz = ([float.fromhex(text) for text in tables[name]] for name in ("float8_e4m3fn", "float8_e4m3fnuz"))
    codes = torch.arange(256, dtype=torch.uint8)
    converted = to_fnuz(codes.view(torch.float8_e4m3fn)).view(torch.uint8).tolist()
    for code, other in enumerate(converted):
        if fn[code] != fn[code]:
            assert fnuz[other] != fnuz[other]
            assert other == 0x80
        else:
            assert 2 * fnuz[other] == fn[code]
    assert converted[0x80] == 0
    assert [code for code in range(256) if converted[code] != code] == [0x7F, 0x80, 0xFF]


def test_only_e4m3fn_codes_are_converted_and_never_twice() -> None:
    once = to_fnuz(torch.zeros(4, 4).to(torch.float8_e4m3fn))
    assert once.dtype == torch.float8_e4m3fnuz
    with pytest.raises(KernelInputError, match="convert them once only"):
        to_fnuz(once)


# --- The rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", PACKAGES)
def test_a_row_of_a_library_is_bounded_and_says_what_it_needs(kernel: str) -> None:
    row = TABLE.kernels[kernel]
    assert not any(place.portable for place in row.runs_on.values())
    own = {p.name for p in row.needs} - {"torch"}
    assert len(own) == 1
    assert all(p.values == (False,) for p in row.accepts if p.key == "accepts.bias")
    assert row.status == ("verified" if kernel in RAN else "unverified")


def test_rows_of_libraries_change_nothing_where_the_libraries_are_absent() -> None:
    routes = {
        key: replace(route, steps=tuple(step for step in route.steps if step.kernel not in PACKAGES))
        for key, route in TABLE.routes.items()
    }
    bare = replace(TABLE, routes=routes, answers={})
    names = [f"{p.name}:{name}" for p in TABLE.platforms.values() for name in p.architectures]
    for name in names:
        for scheme in TABLE.schemes:
            for sizes in ({"n": 4096, "k": 4096}, {"n": 4096, "k": 4096, "m": 1}, {"n": 576, "k": 7168}):
                asked = Problem(scheme, **sizes)
                with_rows, without = (select(t, device(name, t), asked).kernel for t in (TABLE, bare))
                assert with_rows == without


@pytest.mark.parametrize(
    ("name", "scheme", "kernel"),
    [
        ("a100", "fp8_block_w8a8", "vllm_marlin_fp8"),
        ("h200", "fp8_block_w8a8", "hopper_fp8_block"),
        ("b200", "fp8_block_w8a8", "vllm_cutlass_fp8_block"),
        ("dgx-spark", "mxfp8", "flashinfer_mxfp8"),
        ("rtx-3090", "w8a16_fp8", "vllm_marlin_fp8"),
        ("dgx-spark", "fp8_w8a8", "vllm_cutlass_fp8"),
        ("mi300x", "fp8_block_w8a8", "aiter_fp8_block"),
        ("arc-b60", "fp8_block_w8a8", "xpu_fp8_gemm_block"),
        ("max-1550", "fp8_w8a8", "xpu_fp8_gemm"),
    ],
)
def test_a_library_that_is_there_is_chosen(name: str, scheme: str, kernel: str) -> None:
    there = replace(device(name, TABLE), assume_all=True)
    assert select(TABLE, there, Problem(scheme, n=4096, k=4096)).kernel == kernel
    with_bias = select(TABLE, there, Problem(scheme, n=4096, k=4096, bias=True)).kernel
    assert with_bias not in PACKAGES


@pytest.mark.parametrize(
    ("sizes", "kernel"), [({"n": 96, "k": 4096}, False), ({"n": 4096, "k": 96}, False), ({"n": 128, "k": 128}, True)]
)
def test_flashinfer_mxfp8_is_passed_over_below_128(sizes: dict[str, int], kernel: bool) -> None:
    there = replace(device("b200", TABLE), assume_all=True)
    assert (select(TABLE, there, Problem("mxfp8", **sizes)).kernel == "flashinfer_mxfp8") is kernel


def test_the_f16_twin_serves_turing() -> None:
    there = replace(device("t4", TABLE), assume_all=True)
    asked = Problem("fp8_block_w8a8", n=4096, k=4096, input="f16", output="f16")
    assert select(TABLE, there, asked).kernel == "vllm_marlin_fp8_f16"
    assert select(TABLE, there, replace(asked, input="bf16", output="bf16")).kernel == "reference"
