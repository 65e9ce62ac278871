"""What a kernel adapter is. One file a kernel in this folder; the file name is the kernel id of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class BoundKernel(Protocol):
    """A kernel bound to one layer. Each adapter file defines `class Kernel` with this shape.

    The constructor packs: it takes the completed Problem (no None among the quantization details; m may be None) and,
    by keyword, the tensors that its row lists under `parameters`; an optional one that the layer lacks is None.
    It never changes the tensors it is given.

        def __init__(self, problem, *, weight, weight_scale, input_scale=None): ...

    A kernel that quantizes its input in a launch of its own shows the two stages as `quantize(x)` and
    `product(quantized, bias=None)`, so that `kerneltable bench` can time them apart.
    """

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute x @ dequantized(weight).T + bias.

        x        [m, k], m at least 1, dtype problem.input, columns contiguous, any row stride
        bias     [n] in any float dtype, or None; added once, before the one rounding to problem.output
        returns  [m, n] in problem.output, contiguous
        """
        ...
