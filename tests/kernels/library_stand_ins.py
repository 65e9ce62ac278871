"""Stand-ins for libraries that are not here: the signatures of the real ones, their checks, and right numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

E4M3 = torch.float8_e4m3fn
KEY = 0x5A5A5A5A
COLUMNS_ALONE = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
COLUMNS_OF_GROUPS = [i + 8 * j for i in range(8) for j in range(8)]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module of that name where `import` finds it."""
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@contextmanager
def registered(namespace: str, **ops: Any) -> Iterator[None]:
    """Register ops for the time of a test: name -> (schema without the name, function)."""
    library = torch.library.Library(namespace, "FRAGMENT")
    try:
        for name, (schema, function) in ops.items():
            library.define(name + schema)
            library.impl(name, function, "CPU")
        yield
    finally:
        library._destroy()
        for name in ops:
            vars(getattr(torch.ops, namespace)).pop(name, None)


def block_product(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """[m, k] codes with [m, k / 128] scales times [n, k] with [ceil(n / 128), k / 128], float64."""
    (m, k), n = codes.shape, weight.shape[0]
    assert tuple(scales.shape) == (m, k // 128)
    assert tuple(weight_scale.shape) == (-(-n // 128), k // 128)
    assert scales.dtype == weight_scale.dtype == torch.float32
    right = weight.double() * weight_scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1).double()
    return (codes.double() * scales.repeat_interleave(128, 1).double()) @ right.t()


# --- DeepGEMM, FlashInfer, AITER -----------------------------------------------------------------------------------


def fp8_gemm_nt(a: Any, b: Any, d: torch.Tensor, c: Any = None, recipe: Any = None, compiled_dims: str = "nk") -> None:
    """deep_gemm 2: pairs of codes and scales, the result written to d, which is bf16 on SM90; scales of the input whose
    rows lie together, m rounded up to 4, are taken as they are."""
    assert c is None
    m, groups = a[1].shape
    assert m == 1 or a[1].stride(0) == 1
    assert groups == 1 or a[1].stride(1) == -(-m // 4) * 4
    assert a[0].dtype == b[0].dtype == E4M3
    assert a[0].is_contiguous()
    assert b[0].is_contiguous()
    assert b[1].is_contiguous()
    assert d.dtype == torch.bfloat16
    assert d.is_contiguous()
    d.copy_(block_product(*a, *b))


def fp8_blockscale_gemm_sm90(
    input: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """flashinfer 0.7: the kernel reads input scales by their address, rows together, m rounded up to 4."""
    assert input.dtype == weight.dtype == E4M3
    assert input.is_contiguous()
    assert weight.is_contiguous()
    assert input_scale is not None
    assert weight_scale is not None
    assert weight.shape[0] % 64 == 0
    assert out_dtype in (None, torch.bfloat16)
    assert out is None
    m, k = input.shape
    assert tuple(input_scale.shape) == (m, k // 128)
    aligned = -(-m // 4) * 4
    read = torch.as_strided(input_scale, (k // 128, aligned), (aligned, 1))[:, :m].t()
    return block_product(input, read, weight, weight_scale).to(torch.bfloat16)


def mm_mxfp8(
    a: torch.Tensor,
    b: torch.Tensor,
    a_descale: torch.Tensor,
    b_descale: torch.Tensor,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    use_8x4_sf_layout: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """flashinfer 0.7: b is [k, n] column-major, scales are uint8 in tiles of 128x4, one dimension."""
    assert a.dtype == b.dtype == E4M3
    assert b.stride(0) == 1
    assert min(b.shape) >= 128
    assert out_dtype in (torch.bfloat16, torch.float16)
    assert not use_8x4_sf_layout
    sides = []
    for matrix, flat in ((a, a_descale), (b.t(), b_descale)):
        rows, k = matrix.shape
        across = -(-(k // 32) // 4)
        assert flat.dtype == torch.uint8
        assert tuple(flat.shape) == (-(-rows // 128) * 128 * across * 4,)
        tiles = flat.reshape(-(-rows // 128), across, 32, 4, 4)
        exponents = tiles.permute(0, 3, 2, 1, 4).reshape(-1, across * 4)[:rows, : k // 32]
        sides.append(matrix.double() * torch.exp2(exponents.double() - 127).repeat_interleave(32, 1))
    return (sides[0] @ sides[1].t()).to(out_dtype)


def aiter(native: torch.dtype) -> dict[str, Any]:
    """The members of aiter that are used, on a chip with this FP8."""

    def gemm_a8w8_blockscale(
        XQ: torch.Tensor,
        WQ: torch.Tensor,
        x_scale: torch.Tensor,
        w_scale: torch.Tensor,
        dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        assert XQ.dtype == WQ.dtype == native
        assert XQ.is_contiguous()
        assert WQ.is_contiguous()
        assert dtype == torch.bfloat16
        return block_product(XQ.float(), x_scale, WQ.float(), w_scale).to(dtype)

    return {"dtypes": SimpleNamespace(fp8=native), "gemm_a8w8_blockscale": gemm_a8w8_blockscale}


# --- ops of vLLM ---------------------------------------------------------------------------------------------------

CUTLASS = "(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()"


def cutlass_scaled_mm(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    """The checks of scaled_mm_entry.cu: layouts, alignment, and which scales mean what."""
    (m, k), n = a.shape, b.shape[1]
    assert (a.stride(1), out.stride(1), b.stride(0)) == (1, 1, 1)
    assert out.stride(0) % 16 == 0
    assert b.stride(1) % 16 == 0
    assert a_scales.dtype == b_scales.dtype == torch.float32
    assert out.dtype in (torch.bfloat16, torch.float16)
    assert bias is None
    rows_or_one = a_scales.numel() in (1, m) and b_scales.numel() in (1, n)
    if rows_or_one and not (a_scales.dim() == 2 and a_scales.shape[1] == k // 128 > 1):
        assert a_scales.is_contiguous()
        assert b_scales.is_contiguous()
        out.copy_((a.double() @ b.double()) * a_scales.reshape(-1, 1).double() * b_scales.reshape(1, -1).double())
        return
    assert a_scales.stride(0) == 1
    assert b_scales.stride(0) == 1
    assert tuple(b_scales.shape) == (k // 128, n // 128)
    out.copy_(block_product(a, a_scales, b.t(), b_scales.t()))


REPACK = "(Tensor b_q_weight, Tensor perm, SymInt size_k, SymInt size_n, int num_bits, bool is_a_8bit) -> Tensor"
MARLIN = (
    "(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, Tensor b_scales, Tensor? a_scales, "
    "Tensor? global_scale, Tensor? b_zeros_or_none, Tensor? g_idx_or_none, Tensor? perm_or_none, Tensor workspace, "
    "int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k, bool is_k_full, bool use_atomic_add, "
    "bool use_fp32_reduce, bool is_zp_float) -> Tensor"
)
OLD_REPACK = "(Tensor b_q_weight, Tensor perm, SymInt size_k, SymInt size_n, int num_bits) -> Tensor"
OLD_MARLIN = (
    "(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, Tensor b_scales, Tensor? global_scale, "
    "Tensor? b_zeros_or_none, Tensor? g_idx_or_none, Tensor? perm_or_none, Tensor workspace, int b_q_type, "
    "SymInt size_m, SymInt size_n, SymInt size_k, bool is_k_full, bool use_atomic_add, bool use_fp32_reduce, "
    "bool is_zp_float) -> Tensor"
)


def gptq_marlin_repack(
    b_q_weight: torch.Tensor, perm: torch.Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool = False
) -> torch.Tensor:
    """Words [k / 4, n] -> [k / 16, 4 n]; here the order stays and the words are locked with a key."""
    assert tuple(b_q_weight.shape) == (size_k // 4, size_n)
    assert b_q_weight.dtype == perm.dtype == torch.int32
    assert b_q_weight.is_contiguous()
    assert (perm.numel(), num_bits, is_a_8bit) == (0, 8, False)
    return b_q_weight.reshape(size_k // 16, 4 * size_n) ^ KEY


def marlin_gemm(a: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Marlin as its newest schema calls it; the older one is brought to the same order by old_marlin_gemm."""
    (c, words, bias, scales, a_scales, global_scale, zeros, g_idx, perm, workspace, kind, m, n, k, full, *flags) = rest
    assert [c, bias, a_scales, global_scale, zeros, g_idx, perm] == [None] * 7
    assert flags == [False, True, False]
    assert full
    assert (tuple(a.shape), a.is_contiguous()) == ((m, k), True)
    assert a.dtype == scales.dtype
    assert workspace.dtype == torch.int32
    assert not workspace.any()
    assert kind == 2814749767172868
    bytes_ = (words ^ KEY).reshape(k // 4, n).t().contiguous().view(torch.uint8).to(torch.int32)
    shift = 4 if a.dtype == torch.bfloat16 else 7
    low = ((bytes_ & 0x80) << 8 | (bytes_ & 0x7F) << shift).to(torch.int16).view(a.dtype)
    order = torch.tensor(COLUMNS_ALONE if scales.shape[0] == 1 else COLUMNS_OF_GROUPS)
    plain = torch.empty_like(scales).reshape(-1, len(order))
    plain[:, order] = scales.reshape(-1, len(order))
    plain = plain.reshape(scales.shape)
    if scales.shape[0] == 1:
        return ((a.double() @ low.double().t()) * plain.double()).to(a.dtype)
    assert scales.shape[0] == k // 128
    weight = low * plain.t().repeat_interleave(128, 1)
    return (a.double() @ weight.double().t()).to(a.dtype)


def old_marlin_gemm(a: torch.Tensor, c: Any, words: Any, bias: Any, scales: Any, *rest: Any) -> torch.Tensor:
    """The op of vLLM before inputs of 8 bits: no a_scales."""
    return marlin_gemm(a, c, words, bias, scales, None, *rest)


# --- ops of vllm-xpu-kernels ---------------------------------------------------------------------------------------

XPU = "(Tensor A, Tensor B, ScalarType? out_dtype, Tensor? A_scale_, Tensor? B_scale_, Tensor? bias_) -> Tensor"


def fp8_gemm(
    A: torch.Tensor, B: torch.Tensor, out_dtype: torch.dtype, A_scale: Any, B_scale: Any, bias: Any
) -> torch.Tensor:
    """oneDNN: B is a [k, n] view; scales one number, a vector, or contiguous groups of 128 of k by a divisor of n."""
    (m, k), n = A.shape, B.shape[1]
    assert (B.shape[0], B.stride(0), bias) == (k, 1, None)
    assert A_scale.is_contiguous()
    assert B_scale.is_contiguous()
    assert A_scale.dtype == B_scale.dtype == torch.float32
    if B_scale.dim() == 1:
        assert tuple(A_scale.shape) in ((1,), (m, 1))
        assert B_scale.numel() in (1, n)
        return ((A.double() @ B.double()) * A_scale.reshape(-1, 1).double() * B_scale.double()).to(out_dtype)
    groups, width = B_scale.shape[1], n // B_scale.shape[1]
    assert groups * width == n
    assert width % 16 == 0
    assert tuple(A_scale.shape) == (m, k // 128)
    right = B.double() * B_scale.repeat_interleave(width, 1).repeat_interleave(128, 0).double()
    return ((A.double() * A_scale.repeat_interleave(128, 1).double()) @ right).to(out_dtype)


# --- humming -------------------------------------------------------------------------------------------------------


class HummingWeightSchema:
    """Keyword-only, like the real dataclass of humming 0.1.19."""

    def __init__(
        self,
        *,
        b_dtype: str,
        bs_dtype: str | None = None,
        weight_scale_group_size: int = 0,
        weight_scale_type: str | None = None,
    ) -> None:
        assert b_dtype == "float8e4m3"
        assert bs_dtype == ("float32" if weight_scale_type == "tensor" else None)
        self.group, self.kind = weight_scale_group_size, weight_scale_type


def prepare_and_transform_humming_tensors(  # noqa: PLR0913, PLR0917  the real one has as many
    tensors: dict[str, torch.Tensor],
    shape_n: int,
    shape_k: int,
    weight_schema: HummingWeightSchema,
    input_schema: Any = None,
    num_experts: int | None = None,
    pad_n_to_multiple: int = 1,
    pad_k_to_multiple: int = 1,
    has_bias: bool = False,
    torch_dtype: torch.dtype | None = None,
    device: Any = None,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The checks of validate_tensors, and a transformation that the forward stand-in undoes."""
    assert torch_dtype == torch.bfloat16
    assert tuple(tensors["weight"].shape) == (shape_n, shape_k // 4)
    assert tensors["weight"].dtype == torch.int32
    wanted = {
        "tensor": ((1,), torch.float32),
        "channel": ((shape_n, 1), torch_dtype),
        "group": ((shape_n, shape_k // 128), torch_dtype),
    }[str(weight_schema.kind)]
    assert (tuple(tensors["weight_scale"].shape), tensors["weight_scale"].dtype) == wanted
    config = SimpleNamespace(n=shape_n, k=shape_k, group=weight_schema.group or shape_k)
    return config, {"weight": tensors["weight"] ^ KEY, "weight_scale": tensors["weight_scale"]}


def humming_forward(
    config: Any,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None = None,
    locks: torch.Tensor | None = None,
    compute_config: str | None = None,
) -> torch.Tensor:
    """Weights times scales rounded to bf16, then the product; the scale of a tensor applied to the sum."""
    assert inputs.is_contiguous()
    assert inputs.dtype == torch.bfloat16
    assert locks is not None
    assert weight_scale is not None
    assert not locks.any()
    assert compute_config == '{"use_batch_invariant": true}'  # else two runs may differ
    codes = (weight ^ KEY).view(E4M3).double()
    if weight_scale.dtype == torch.float32:
        return ((inputs.double() @ codes.t()) * weight_scale.double()).to(inputs.dtype)
    right = (codes * weight_scale.repeat_interleave(config.group, 1).double()).to(torch.bfloat16).double()
    return (inputs.double() @ right.t()).to(inputs.dtype)
