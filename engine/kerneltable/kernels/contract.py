"""What a kernel adapter is. One file a kernel in this folder; the file name is the kernel id of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class BoundKernel(Protocol):
    """A kernel bound to one layer. Each adapter file defines `class Kernel` with this shape.

    The constructor packs: it takes the completed Problem (no None among the quantization details; m may be None) and,
    by keyword, the tensors that its row lists under `parameters`; an optional one that the layer lacks is None.
    It never changes the tensors it is given. One with device code of csrc/cuda takes `chip` too, which no row lists:
    ops.cuda_chip.CudaChip, what the table says of the device, or None where the table describes no such chip.

    Kernels of one layout share a copy of the weights: one that packs keeps what it packed (a tensor, or a tuple of
    them) as its attribute `packed`, and takes `packed=None`, which no row lists either: that of another kernel of the
    layout, for the same tensors. What depends on more than them, such as the input's type, does not belong there.
    A static method `unpack` says that the way back is exact: a layer may then hold these weights once (its tensors are
    released, and made again when asked for), so that such a kernel keeps no reference to what `unpack` gives back, and
    no address of it. A kernel without one keeps a reference to each tensor that it reads when called.

        def __init__(self, problem, *, weight, weight_scale, input_scale=None): ...

        @staticmethod
        def unpack(problem, packed): ...    # {"weight": uint8 [n, k]} by the scheme's own names, every byte as it was

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
