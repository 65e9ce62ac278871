"""Marlin of an installed vLLM: FP8 weights in Marlin's own order, widened in registers to the type of the input.

Marlin widens e4m3 by moving bits, without correcting the exponent: a weight stands 2^-8 (f16) or 2^-120 (bf16) too
low, and packed scales carry the inverse. NaN codes would be read as 480, so such weights are not taken.
Source: csrc/quantization/marlin of vLLM (Apache-2.0), gptq_marlin_repack.cu and dequant.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.errors import KernelUnavailable, WeightsRefused
from kerneltable.ops.installed import argument_names, library_op
from kerneltable.ops.stream_memory import StreamMemory
from kerneltable.ops.torch_fp8 import has_nan_codes

GEMM = ("_C::marlin_gemm", "_C::gptq_marlin_gemm")
REPACK = ("_C::gptq_marlin_repack",)
E4M3_ID = 4 | 3 << 8 | 1 << 16 | 1 << 49 | 2 << 50
"""vLLM's number of e4m3: exponent and mantissa bits, signed, bias 0, finite values only, NaN at the extremes."""

LOW = {torch.float16: 8, torch.bfloat16: 120}
"""How many powers of two too low a widened weight stands."""

GROUP = 128
CHANNEL_ORDER = tuple(2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25))
GROUP_ORDER = tuple(i + 8 * j for i in range(8) for j in range(8))


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer in Marlin's order.

    weight     int32 [k / 16, 4 n]
    scale      [1, n] (one group) or [k / 128, n], in the input's dtype, columns in Marlin's order
    locks      of the column blocks
    fixed      the arguments of the op that are the same at every call
    """

    op: Any
    weight: torch.Tensor
    scale: torch.Tensor
    locks: StreamMemory
    fixed: dict[str, Any]


def pack(weight: torch.Tensor, scale: torch.Tensor, granularity: str | None, dtype: torch.dtype) -> Packed:
    """Put a layer in Marlin's order.

    weight       [n, k] e4m3, n a multiple of 64, k of 128
    scale        f32: [] or [1] (tensor), [n] or [n, 1] (channel), [ceil(n / 128), k / 128] (block)
    granularity  tensor, channel or block
    dtype        f16 or bf16: that of inputs and results
    errors       KernelUnavailable: ops missing or of another form; WeightsRefused: NaN codes, a scale
                 that dtype cannot hold
    """
    op = library_op(GEMM, ("a", "b_q_weight", "b_scales", "workspace", "size_m", "size_n", "size_k"), "vllm")
    repack = library_op(REPACK, ("b_q_weight", "perm", "size_k", "size_n", "num_bits"), "vllm")
    if has_nan_codes(weight):
        raise WeightsRefused("weight: has NaN codes, which Marlin reads as 480; another kernel must take it")
    n, k = weight.shape
    words = weight.contiguous().view(torch.int32).t().contiguous()
    given = {"b_q_weight": words, "size_k": k, "size_n": n, "num_bits": 8, "is_a_8bit": False}
    given["perm"] = torch.empty(0, dtype=torch.int32, device=weight.device)
    packed = repack(**{name: value for name, value in given.items() if name in argument_names(repack)})
    fixed = _fixed_arguments(op, n, k)
    return Packed(op, packed, pack_scale(scale, granularity, n, dtype), _locks(weight.device), fixed)


def pack_scale(scale: torch.Tensor, granularity: str | None, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Scales as Marlin reads them: rounded to dtype, 2^8 or 2^120 times as large, columns in its order.

    scale, granularity, dtype  as in pack
    returns                    [1, n], or [k / 128, n], dtype
    errors                     WeightsRefused when a scale leaves the normal numbers of dtype
    """
    if granularity == "block":
        columns = scale.t().repeat_interleave(GROUP, dim=1)[:, :n]
    else:
        columns = scale.reshape(1, -1).expand(1, n)
    order = CHANNEL_ORDER if columns.shape[0] == 1 else GROUP_ORDER
    raised = (columns.to(dtype).to(torch.float64) * 2.0 ** LOW[dtype]).to(dtype)
    limits = torch.finfo(dtype)
    if not bool(((raised >= limits.tiny) & (raised <= limits.max)).all()):
        raise WeightsRefused(
            f"weight_scale: Marlin wants scales that {dtype} holds after multiplication by 2^{LOW[dtype]}; found "
            f"{float(columns.min()):g} to {float(columns.max()):g}; another kernel must take this layer"
        )
    groups = raised.shape[0]
    place = torch.tensor(order, device=raised.device)
    return raised.reshape(-1, len(order)).index_select(1, place).reshape(groups, n).contiguous()


def product(packed: Packed, x: torch.Tensor) -> torch.Tensor:
    """x [m, k] in the packed dtype, contiguous -> [m, n] in the same dtype."""
    out: torch.Tensor = packed.op(
        a=x,
        b_q_weight=packed.weight,
        b_scales=packed.scale,
        workspace=packed.locks.now(),
        size_m=x.shape[0],
        **packed.fixed,
    )
    return out


def _fixed_arguments(op: Any, n: int, k: int) -> dict[str, Any]:
    """Every other argument of this version's op: sizes, the weight's type, sums in float32, no atomics, no extras."""
    known = {
        "b_q_type": E4M3_ID,
        "b_type_id": E4M3_ID,
        "size_n": n,
        "size_k": k,
        "is_k_full": True,
        "use_atomic_add": False,
        "use_fp32_reduce": True,
        "is_zp_float": False,
    }
    at_call = {"a", "b_q_weight", "b_scales", "workspace", "size_m"}
    fixed: dict[str, Any] = {}
    for argument in op._schema.arguments:
        if argument.name in known:
            fixed[argument.name] = known[argument.name]
        elif argument.name not in at_call:
            if argument.type.kind() != "OptionalType":
                raise KernelUnavailable(
                    f"op {op}: argument {argument.name} ({argument.type}) is not known here; take a version of 'vllm' "
                    "that the row names"
                )
            fixed[argument.name] = None
    return fixed


def _locks(device: torch.device) -> StreamMemory:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return StreamMemory(device, processors)
