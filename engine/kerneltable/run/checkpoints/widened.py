"""Quantized linears as plain ones: for layers whose weight a model's own code reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from kerneltable.errors import LayerError
from kerneltable.formats import FORMATS
from kerneltable.model import Table
from kerneltable.ops.torch_dequantize import dequantize_weight
from kerneltable.ops.torch_fp8 import widen_scale
from kerneltable.run.checkpoints.group_format import GroupFormat
from kerneltable.run.layer import Declared, read_layer
from kerneltable.run.reblock import plain_block_scale


def widened_linear(
    form: GroupFormat, tensors: Mapping[str, torch.Tensor], table: Table, input: str, name: str
) -> torch.nn.Linear:
    """A plain linear of the numbers that a quantized layer's codes and scales stand for; its input stays unquantized.

    tensors  by their names in the checkpoint, bias among them if there is one
    input    the dtype of its weight and bias: bf16, f16, f32; each element is rounded to it once
    errors   LayerError: the tensors do not fit the scheme
    """
    scheme = table.schemes.get(form.scheme)
    if scheme is None:
        raise LayerError(f"{name}: the table has no scheme {form.scheme}; it has {', '.join(sorted(table.schemes))}")
    block = form.weight_granularity == "block"
    given = {key: plain_block_scale(tensor) if block else tensor for key, tensor in tensors.items()}
    declared = Declared(
        input=input,
        weight_granularity=form.weight_granularity,
        weight_block=form.weight_block,
        input_granularity=form.input_granularity,
        input_scaling=form.input_scaling,
    )
    layer = read_layer(scheme, given, declared=declared, name=name)
    dtype: torch.dtype = getattr(torch, FORMATS[input].torch_dtype)
    codes, scale = layer.tensors["weight"], widen_scale(layer.tensors["weight_scale"])
    weight = dequantize_weight(layer.problem, codes, scale, torch.float32).to(dtype)
    linear = torch.nn.Linear(layer.problem.k, layer.problem.n, bias=layer.bias is not None, device="meta", dtype=dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = torch.nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return linear


def say_widened(readers: Mapping[str, str]) -> None:
    """Warn of layers that no kernel computes.

    readers  layer -> the method that reads its weight
    """
    if readers:
        listed = [f"{name} (read by {method})" for name, method in list(readers.items())[:4]]
        more = [f"{len(readers) - 4} more"] if len(readers) > 4 else []
        logging.getLogger(__name__).warning(
            "%d quantized layers become plain linears of widened weights, which no kernel of the table computes; the "
            "model's own code reads their weights: %s; a checkpoint whose config ignores them loads without this",
            len(readers),
            ", ".join([*listed, *more]),
        )
