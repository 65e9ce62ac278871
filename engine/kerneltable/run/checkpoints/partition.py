"""A layer cut for tensor parallelism: one rank's rows or columns, whose own n and k the predicates then see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kerneltable.errors import LayerError
from kerneltable.model import Problem, Scheme
from kerneltable.run.layer import SCALARS, Layer
from kerneltable.run.reblock import Block, columns_of, common_rows, finer_columns, finer_rows, rows_of
from kerneltable.select import complete

AXES = ("n", "k")


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a layer, ready for `QuantLinear.from_tensors` with these keywords.

    tensors       weight [n of the rank, k of the rank] and its scales
    bias          the rank's rows along n; along k the whole bias on rank 0, None elsewhere: results are summed
    weight_block  that of the layer, or smaller where the rank begins inside a block
    """

    scheme: str
    tensors: Mapping[str, torch.Tensor]
    bias: torch.Tensor | None
    weight_granularity: str | None
    weight_block: Block | None


def shard(scheme: Scheme, layer: Layer, axis: str, rank: int, ranks: int, *, name: str = "layer") -> Shard:
    """Cut one rank's part out of a layer of this scheme.

    axis     n: outputs are divided (column-parallel); k: inputs are divided and results summed (row-parallel)
    rank     from 0 to ranks - 1; n or k must be a multiple of ranks
    errors   LayerError: axis, rank, a size that does not divide, or k cut inside a group of the input's scales
    """
    if axis not in AXES:
        raise LayerError(f"{name}: axis must be n or k; found {axis!r}")
    if not 0 <= rank < ranks:
        raise LayerError(f"{name}: rank must be from 0 to {ranks - 1}; found {rank}")
    problem = complete(scheme, layer.problem)
    size = problem.n if axis == "n" else problem.k
    if size % ranks:
        raise LayerError(f"{name}: {axis} = {size} is no multiple of {ranks} ranks; take a number that divides it")
    part = size // ranks
    first, last = rank * part, (rank + 1) * part
    if axis == "n":
        weight, scale, block = _rows(problem, layer.tensors, first, last)
    else:
        free = scheme.weight.any_block and problem.input_granularity != "block"
        weight, scale, block = _columns(problem, layer.tensors, first, last, None if free else name)
    tensors = {"weight": weight, "weight_scale": scale}
    tensors |= {key: layer.tensors[key] for key in SCALARS if key in layer.tensors}
    bias = layer.bias
    if bias is not None:
        bias = bias[first:last].contiguous() if axis == "n" else bias if rank == 0 else None
    return Shard(problem.scheme, tensors, bias, problem.weight_granularity, block)


def _rows(
    problem: Problem, tensors: Mapping[str, torch.Tensor], first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor, Block | None]:
    """Rows first to last of weight and scale."""
    scale, block = tensors["weight_scale"], problem.weight_block
    if problem.weight_granularity == "channel":
        scale = rows_of(scale, slice(first, last))
    elif block is not None:
        rows = common_rows(block[0], _inner(first, last, problem.n))
        finer = finer_rows(scale, problem.n, block, rows)
        scale, block = rows_of(finer, slice(first // rows, -(-last // rows))), (rows, block[1])
    return rows_of(tensors["weight"], slice(first, last)), scale, block


def _columns(
    problem: Problem, tensors: Mapping[str, torch.Tensor], first: int, last: int, name: str | None
) -> tuple[torch.Tensor, torch.Tensor, Block | None]:
    """Columns first to last of weight and scale; a name stands for a layer whose blocks must not be cut."""
    scale, block = tensors["weight_scale"], problem.weight_block
    if block is not None:
        columns = common_rows(block[1], _inner(first, last, problem.k))
        if columns != block[1] and name is not None:
            raise LayerError(
                f"{name}: columns {first} to {last} cut a group of {block[1]} that shares one scale; take a number of "
                f"ranks that leaves each a multiple of {block[1]}"
            )
        finer = finer_columns(scale, problem.k, block, columns)
        scale = columns_of(finer, slice(first // columns, -(-last // columns)))
        block = (block[0], columns)
    return columns_of(tensors["weight"], slice(first, last)), scale, block


def _inner(first: int, last: int, size: int) -> list[int]:
    """The edges that lie inside the layer: 0 and its end bind nobody."""
    return [edge for edge in (first, last) if edge != size]
