"""Block scales cut or joined at rows that are no multiple of the block: the same numbers in smaller blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

Block = tuple[int, int]


def common_rows(rows: int, edges: Iterable[int]) -> int:
    """Rows of the largest block that divides `rows` and has a border at every edge."""
    return math.gcd(rows, *edges)


def finer_rows(scale: torch.Tensor, n: int, block: Block, rows: int) -> torch.Tensor:
    """The same scales with blocks of fewer rows.

    scale    [ceil(n / block[0]), groups], any stored format
    rows     a divisor of block[0]
    returns  [ceil(n / rows), groups], dtype of scale
    """
    if rows == block[0]:
        return scale
    first = torch.arange(-(-n // rows), device=scale.device) * rows // block[0]
    return rows_of(scale, first)


def finer_columns(scale: torch.Tensor, k: int, block: Block, columns: int) -> torch.Tensor:
    """The same scales with blocks of fewer columns, [rows, ceil(k / columns)]; columns a divisor of block[1]."""
    if columns == block[1]:
        return scale
    first = torch.arange(-(-k // columns), device=scale.device) * columns // block[1]
    return columns_of(scale, first)


def rows_of(tensor: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor:
    """Rows of a tensor of any dtype, 8-bit floats too, contiguous."""
    narrow = tensor.element_size() == 1
    plain = tensor.view(torch.uint8) if narrow else tensor
    taken = plain[index].contiguous()
    return taken.view(tensor.dtype) if narrow else taken


def columns_of(tensor: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor:
    """Columns of a matrix of any dtype, 8-bit floats too, contiguous."""
    narrow = tensor.element_size() == 1
    plain = tensor.view(torch.uint8) if narrow else tensor
    taken = plain[:, index].contiguous()
    return taken.view(tensor.dtype) if narrow else taken


def plain_block_scale(scale: torch.Tensor) -> torch.Tensor:
    """A block scale as ModelOpt stores it, [rows, 1, columns, 1], as [rows, columns]; every other one as it is."""
    if scale.dim() == 4 and scale.shape[1] == scale.shape[3] == 1:
        return scale.reshape(scale.shape[0], scale.shape[2])
    return scale
