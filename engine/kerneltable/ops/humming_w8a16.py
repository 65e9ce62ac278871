"""humming, a just-in-time compiled GEMM library (package humming-kernels): FP8 weights with 16-bit inputs.

Source of the calling convention: humming-kernels 0.1.19 (Apache-2.0), humming/transform.py and humming/forward.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.errors import ShapeUnavailable, WeightsRefused
from kerneltable.ops.installed import library_function
from kerneltable.ops.stream_memory import StreamMemory
from kerneltable.ops.torch_fp8 import has_nan_codes

GROUP = 128
LOCKS = 2048
DISTRIBUTION = "humming-kernels"
STEADY = '{"use_batch_invariant": true}'
"""Its compute_config: whole sums in one order. Else a long k is divided, and its parts are added in 16 bits as they are
done: two runs differed, and integer-exact data was off (0.1.19, H200, 512 x 4096 and 7168 x 2048)."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer in humming's order: its own configuration, tensors and the locks that its kernels ask for."""

    forward: Callable[..., torch.Tensor]
    config: Any
    tensors: Mapping[str, torch.Tensor]
    locks: StreamMemory


def pack(weight: torch.Tensor, scale: torch.Tensor, granularity: str | None, dtype: torch.dtype) -> Packed:
    """Put a layer in humming's order.

    weight       [n, k] e4m3, n a multiple of 256, k of 128
    scale        f32: [] or [1] (tensor), [n] or [n, 1] (channel), [ceil(n / 128), k / 128] (block)
    granularity  tensor (scale kept in f32), channel or block (rounded to dtype)
    dtype        bf16: that of inputs and results
    errors       KernelUnavailable: humming missing or of another form; ShapeUnavailable: a shape that it does not take;
                 WeightsRefused: NaN codes, a scale that dtype cannot hold
    """
    schema_class = library_function("humming.schema", "HummingWeightSchema", DISTRIBUTION)
    prepare = library_function("humming.transform", "prepare_and_transform_humming_tensors", DISTRIBUTION)
    forward = library_function("humming.forward", "humming_forward", DISTRIBUTION)
    if has_nan_codes(weight):
        raise WeightsRefused("weight: has NaN codes, which humming widens to numbers; another kernel must take it")
    n, k = weight.shape
    group = GROUP if granularity == "block" else 0
    kind = {"tensor": "tensor", "channel": "channel", "block": "group"}[str(granularity)]
    try:
        schema = schema_class(
            b_dtype="float8e4m3",
            bs_dtype="float32" if granularity == "tensor" else None,
            weight_scale_group_size=group,
            weight_scale_type=kind,
        )
        config, tensors = prepare(
            {"weight": weight.contiguous().view(torch.int32), "weight_scale": pack_scale(scale, granularity, n, dtype)},
            shape_n=n,
            shape_k=k,
            weight_schema=schema,
            torch_dtype=dtype,
            device=weight.device,
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ShapeUnavailable(f"humming: does not take this layer: {error or type(error).__name__}") from error
    return Packed(forward, config, tensors, StreamMemory(weight.device, LOCKS))


def pack_scale(scale: torch.Tensor, granularity: str | None, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Scales as humming takes them: [1] f32 (tensor), [n, 1] or [n, k / 128] dtype (channel, block by rows).

    errors   WeightsRefused when a scale leaves the normal numbers of dtype
    """
    if granularity == "tensor":
        return scale.reshape(1).to(torch.float32).contiguous()
    rows = scale.repeat_interleave(GROUP, dim=0)[:n] if granularity == "block" else scale.reshape(n, 1)
    kept = rows.to(dtype).contiguous()
    limits = torch.finfo(dtype)
    if not bool(((kept >= limits.tiny) & (kept <= limits.max)).all()):
        raise WeightsRefused(f"weight_scale: humming wants scales that {dtype} holds; another kernel must take it")
    return kept


def product(packed: Packed, x: torch.Tensor) -> torch.Tensor:
    """x [m, k] in the packed dtype, contiguous -> [m, n] in the same dtype."""
    return packed.forward(packed.config, x, locks=packed.locks.now(), compute_config=STEADY, **packed.tensors)
