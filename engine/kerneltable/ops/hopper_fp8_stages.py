"""Eager calls of the Hopper FP8 products that are several launches: the input's quantizer, then the product.

What lies between them comes from torch's caching allocator, which gives the same addresses again and again; for each
of them there are launches that are written but for what differs from call to call. In a CUDA graph, which the host does
not run, the stages `quantize` and `product` of a kernel follow each other instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kerneltable.ops import stream_memory
from kerneltable.ops.cuda_launch import Function, TensorMap
from kerneltable.ops.cuda_memory import give_back, take
from kerneltable.ops.cuda_repeated import Repeated

MOST = 8
"""Addresses whose launches are kept, of calls with one number of rows."""


@dataclass(frozen=True, slots=True)
class Written:
    """The launches of a call, for one address between them on one stream.

    quantize  each takes the address of x
    product   takes the addresses of the bias (0: none) and the output
    outputs   for workers that stay: the map of the output at an address
    """

    quantize: tuple[Repeated, ...]
    product: Repeated
    outputs: Callable[[int], TensorMap] | None


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """Calls with one number of rows.

    function  one of those that are launched
    bytes     between the launches
    make      gives the launches for an address and a stream; None where they cannot be written for that stream
    """

    function: Function
    bytes: int
    make: Callable[[int, int], Written | None]
    known: dict[tuple[int, int], Written] = field(default_factory=dict)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> bool:
        """Launch, and say so; False, and nothing is launched, while a graph is captured and where `make` says None.

        x    [m, k], contiguous, at a multiple of 16 bytes
        out  [m, n], which is written
        """
        stream = stream_memory.eager_stream(self.function)
        if stream is None:
            return False
        memory = take(self.bytes, self.function)
        try:
            written = self.known.get((stream, memory)) or self._write(memory, stream)
            if written is None:
                return False
            source = (x.data_ptr(),)
            for launch in written.quantize:
                launch(source)
            at = out.data_ptr()
            addresses = (0 if bias is None else bias.data_ptr(), at)
            if written.outputs is None:
                written.product(addresses)
            else:
                written.product(addresses, written.outputs(at).address)
        finally:
            give_back(memory)
        return True

    def _write(self, memory: int, stream: int) -> Written | None:
        """The launches for an address, kept."""
        found = self.make(memory, stream)
        if found is not None:
            if len(self.known) >= MOST:
                self.known.clear()
            self.known[stream, memory] = found
        return found
