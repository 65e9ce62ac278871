"""Counters in device memory by which the blocks of one launch agree; launches that can overlap never share them.

Kernels of other libraries (Marlin, humming) leave their counters at zero when they end. Calls on one stream follow each
other and may share counters; two streams may not. A CUDA graph can be replayed on any stream, beside anything, so each
call that is captured has counters of its own: the graph zeroes them, and its memory pool holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch

from kerneltable.ops.cuda_launch import Function

MOST_STREAMS = 256
"""Streams that a layer remembers counters for; calls on further ones get theirs anew each time."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamLocks:
    """Counters of one layer, or of a device: int32 zeros, [count] for each stream that it runs on."""

    device: torch.device
    count: int
    known: dict[int, torch.Tensor] = field(default_factory=dict)

    def now(self) -> torch.Tensor:
        """[count] int32 zeros for a launch on the current stream, ready when the launch gets its turn there."""
        found = self.kept()
        return self._zeros() if found is None else found

    def kept(self) -> torch.Tensor | None:
        """Those of the current stream, the same ones each time; None while a graph is captured, and on further
        streams than MOST_STREAMS."""
        stream = current_stream(self.device)
        if stream is None or (stream not in self.known and len(self.known) >= MOST_STREAMS):
            return None
        found = self.known.get(stream)
        return self.known.setdefault(stream, self._zeros()) if found is None else found

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
def locks_of(device: torch.device, count: int) -> StreamLocks:
    """The counters that all layers of a device share, each stream its own."""
    return StreamLocks(device, count)
