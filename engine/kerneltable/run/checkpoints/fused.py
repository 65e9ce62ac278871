"""Projections joined along their outputs (query, key, value; gate, up): one weight, every shard's scales kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kerneltable.errors import LayerError
from kerneltable.ops.torch_fp8 import round_to_e4m3, widen_scale
from kerneltable.run.layer import Layer, dtype_name
from kerneltable.run.reblock import Block, common_rows, finer_rows

SCALARS = ("input_scale", "input_scale_ub")


@dataclass(frozen=True, slots=True)
class Fused:
    """A joined layer, ready for `QuantLinear.from_tensors` with these keywords.

    tensors             weight [sum of n, k], weight_scale, and input_scale, input_scale_ub where the shards have them
    bias                [sum of n], zeros for shards without one, or None
    weight_granularity  tensor when all shards share one scale, channel when each had its own, else theirs
    weight_block        that of the shards, or smaller in rows where shards end inside a block
    """

    scheme: str
    tensors: Mapping[str, torch.Tensor]
    bias: torch.Tensor | None
    weight_granularity: str
    weight_block: Block | None


def fuse(layers: Mapping[str, Layer], *, lossy: bool = False) -> Fused:
    """Join layers that take the same input into one.

    layers   name -> a checked layer (see `kerneltable.run.layer.read_layer`), in the order of their outputs
    lossy    False: every shard keeps its numbers; one scale a tensor becomes one a channel. True: the largest scale is
             taken for all and weights are rounded again; for input scales too. Only for kernels that take no other
    errors   LayerError: schemes, k, dtypes or devices differ, or static input scales differ and lossy is False
    """
    _check_alike(layers)
    parts = list(layers.values())
    first = parts[0].problem
    granularity = {part.problem.weight_granularity for part in parts}
    weights = [part.tensors["weight"] for part in parts]
    scales = [part.tensors["weight_scale"] for part in parts]
    block = None
    if granularity == {"block"}:
        scale, block = _join_blocks(parts)
    elif granularity == {"tensor"} and all(_equal(scales[0], scale) for scale in scales[1:]):
        scale = scales[0]
    elif lossy and granularity == {"tensor"}:
        scale = torch.stack([widen_scale(s).reshape(()) for s in scales]).amax().reshape(1)
        weights = [_rounded_again(w, s, scale) for w, s in zip(weights, scales, strict=True)]
    else:
        scale, granularity = _join([_by_channel(part) for part in parts]), {"channel"}
    tensors = {"weight": _join(weights), "weight_scale": scale} | _input_scales(layers, lossy)
    return Fused(first.scheme, tensors, _join_bias(parts), str(granularity.pop()), block)


def _check_alike(layers: Mapping[str, Layer]) -> None:
    """LayerError when layers cannot take the same input or lie in one tensor."""
    if not layers:
        raise LayerError("fuse: wanted at least one layer; found none")
    (first_name, first), *rest = layers.items()
    for name, layer in rest:
        for what in ("scheme", "k", "input", "output", "weight_scale", "input_granularity", "input_scaling"):
            ours, theirs = (getattr(part.problem, what) for part in (first, layer))
            if ours != theirs:
                raise LayerError(f"fuse: '{first_name}' has {what} {ours}, '{name}' {theirs}; they cannot be joined")
        block = {first.problem.weight_block, layer.problem.weight_block}
        if len(block) > 1:
            raise LayerError(f"fuse: '{first_name}' and '{name}' have different weight blocks; they cannot be joined")
        here, there = (part.tensors["weight"].device for part in (first, layer))
        if here != there:
            raise LayerError(f"fuse: '{first_name}' is on {here}, '{name}' on {there}; move them together")


def _join_blocks(parts: Sequence[Layer]) -> tuple[torch.Tensor, Block]:
    """Block scales one below the other; blocks get fewer rows when a shard ends inside one."""
    block = parts[0].problem.weight_block
    if block is None:
        raise LayerError("fuse: block scales without weight_block; declare it when the layers are read")
    ends = list(accumulate(part.problem.n for part in parts))[:-1]
    rows = common_rows(block[0], ends)
    scales = [finer_rows(part.tensors["weight_scale"], part.problem.n, block, rows) for part in parts]
    return _join(scales), (rows, block[1])


def _by_channel(layer: Layer) -> torch.Tensor:
    """The scale of every output, [n, 1], in its stored format."""
    return layer.tensors["weight_scale"].reshape(-1, 1).expand(layer.problem.n, 1)


def _rounded_again(weight: torch.Tensor, scale: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    numbers = weight.to(torch.float32) * widen_scale(scale).reshape(())
    return round_to_e4m3(numbers / target)


def _input_scales(layers: Mapping[str, Layer], lossy: bool) -> dict[str, torch.Tensor]:
    """The one input scale of the joined layer; LayerError when shards differ and none may be changed."""
    found = {}
    for key in SCALARS:
        given = {name: layer.tensors[key] for name, layer in layers.items() if key in layer.tensors}
        if not given:
            continue
        values = {name: float(widen_scale(tensor)) for name, tensor in given.items()}
        differ = len(set(values.values())) > 1 or len(given) < len(layers)
        if differ and not lossy:
            text = ", ".join(f"'{name}' {values.get(name, 'none')}" for name in layers)
            raise LayerError(
                f"fuse: {key} differs: {text}; one input can be quantized with one scale only: keep the layers apart, "
                "or declare lossy=True to take the largest"
            )
        largest = max(given, key=lambda name: values[name])
        found[key] = given[largest]
    return found


def _join_bias(parts: Sequence[Layer]) -> torch.Tensor | None:
    given = [part.bias for part in parts if part.bias is not None]
    if not given:
        return None
    widest = max((bias.dtype for bias in given), key=lambda dtype: torch.finfo(dtype).bits)
    if any(bias.dtype != widest and torch.finfo(bias.dtype).bits == torch.finfo(widest).bits for bias in given):
        widest = torch.float32
    device = given[0].device
    return torch.cat(
        [
            torch.zeros(part.problem.n, dtype=widest, device=device) if part.bias is None else part.bias.to(widest)
            for part in parts
        ]
    )


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows one below the other, for every dtype."""
    dtype = tensors[0].dtype
    if tensors[0].element_size() == 1:
        return torch.cat([tensor.contiguous().view(torch.uint8) for tensor in tensors]).view(dtype)
    return torch.cat(list(tensors))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return dtype_name(a) == dtype_name(b) and float(widen_scale(a)) == float(widen_scale(b))
