"""Tensors put in a layer after it was built, checked as those that it was built from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kerneltable.errors import LayerError
from kerneltable.model import Problem, Scheme
from kerneltable.run.layer import Declared, read_layer


def read_again(
    scheme: Scheme, problem: Problem, tensors: Mapping[str, Tensor], name: str, *, trusted_scales: bool
) -> dict[str, Tensor]:
    """The tensors that a layer has now, as its kernels want them.

    problem   completed, of the layer as it was built; its tensors may be others by now, but must pose the same one
    tensors   plain ones, under the scheme's own names
    returns   a view of the whole of each, the weight with contiguous rows: kernels know addresses and strides, and a
              view stays as it is when its tensor gets other memory through .data, or another shape in place
    errors    LayerError: one is of a wrong shape, dtype, device or value
    """
    for key in ("weight", "weight_scale"):
        if key not in tensors:
            raise LayerError(f"{name}: {key} must be a tensor; found None; put one in, or build a new layer")
    weight = tensors["weight"]
    if tuple(weight.shape) != (problem.n, problem.k):
        raise LayerError(
            f"{name}: weight must be [{problem.n}, {problem.k}], as the layer was built; found {list(weight.shape)}; "
            "is it another layer's? Put the right one in, or build a new layer"
        )
    now = read_layer(scheme, tensors, None, _as_built(problem, trusted_scales=trusted_scales), name)
    if now.problem.weight_scale != problem.weight_scale:
        raise LayerError(
            f"{name}: weight_scale must be {problem.weight_scale}, as the layer was built; found "
            f"{now.problem.weight_scale}; convert it, or build a new layer from these tensors"
        )
    return {key: tensor.detach() for key, tensor in now.tensors.items()}


def _as_built(problem: Problem, *, trusted_scales: bool) -> Declared:
    """What a caller would declare to get this problem, whatever the tensors leave open."""
    return Declared(
        input=problem.input,
        weight_granularity=problem.weight_granularity,
        weight_block=problem.weight_block,
        input_granularity=problem.input_granularity,
        input_scaling=problem.input_scaling,
        trusted_scales=trusted_scales,
    )
