"""Memory that the launches on one stream share, zero between them: counters by which the blocks of a launch agree.

Kernels leave their counters at zero when they end. Launches on one stream follow each other and may share them; those
on two streams may not. A CUDA graph can be replayed on any stream, beside anything, so each call that is captured has
counters of its own: the graph zeroes them, and its memory pool holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, TypeVar

import torch

from kerneltable.ops.cuda_launch import Function
from kerneltable.ops.cuda_memory import own_zeros

T = TypeVar("T")
MOST_STREAMS = 256
"""Streams that memory is kept for; calls on further ones get theirs anew each time, or do without."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamMemory:
    """Memory of one layer, or of all that share it: int32, [count] for each stream that it runs on, zero at first."""

    device: torch.device
    count: int
    known: dict[int, torch.Tensor] = field(default_factory=dict)

    def now(self) -> torch.Tensor:
        """[count] int32 zeros for a launch on the current stream, ready when the launch before it there has ended."""
        found = self.kept()
        return self._zeros() if found is None else found

    def kept(self) -> torch.Tensor | None:
        """Those of the current stream, the same ones each time, ready at once; None while a graph is captured, and on
        further streams than MOST_STREAMS."""
        stream = current_stream(self.device)
        if stream is None or (stream not in self.known and len(self.known) >= MOST_STREAMS):
            return None
        found = self.known.get(stream)
        return self.known.setdefault(stream, own_zeros(self.count, self.device)) if found is None else found

    def _zeros(self) -> torch.Tensor:
        with torch.inference_mode(False):  # kernels write to them, in and out of inference mode
            return torch.zeros(self.count, dtype=torch.int32, device=self.device)


def current_stream(device: torch.device) -> int | None:
    """A number for the stream that a launch on this device goes to now; None while it is captured into a CUDA graph."""
    if device.type != "cuda":
        return 0
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(device).cuda_stream


def eager_stream(function: Function) -> int | None:
    """The stream of a launch of this function that is not captured; None while a graph is captured, or when another
    device is current, of whose captures nobody has asked."""
    device = function.device
    if torch._C._cuda_getDevice() != device or torch._C._cuda_isCurrentStreamCapturing():
        return None
    return function.stream_of(device)


@cache
def memory_of(device: torch.device, count: int) -> StreamMemory:
    """The memory that all layers of a device share, each stream its own."""
    return StreamMemory(device, count)


@dataclass(frozen=True, slots=True, eq=False)
class Places(Generic[T]):
    """What launches of a function make of the memory of the stream that they go to: worked out once a stream.

    make   gives it for the address of the memory and the stream
    """

    function: Function
    memory: StreamMemory
    make: Callable[[int, int], T]
    known: dict[int, T] = field(default_factory=dict)

    def now(self) -> T | None:
        """That of the current stream; None for a launch that is captured into a graph, which may be replayed beside
        anything, and on more streams than memory is kept for."""
        stream = eager_stream(self.function)
        if stream is None:
            return None
        found = self.known.get(stream)
        if found is None and (memory := self.memory.kept()) is not None:
            found = self.known[stream] = self.make(memory.data_ptr(), stream)
        return found
