"""A layer's bias as float32, which the products of csrc/cuda add: converted once, not by a launch at every call.

What was converted is good as long as the same tensor comes with the same memory and torch's count of changes. It is
never made while a CUDA graph is captured (its numbers would be there after a replay only), and never moved or freed as
long as the kernel lives, so a graph may rest on it. As a packed weight does, it misses what is written past torch's
count: through `.data`, or by a graph. Then `layer.repack()` makes everything anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

MOST = 4
"""Biases that are kept; a layer has one, and one more when `layer.bias` is assigned. Others are converted each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A bias, where it lay and how often it had been changed when it was converted, and the result."""

    bias: torch.Tensor
    at: int
    version: int
    wide: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class WideBias:
    """The biases that a bound kernel has met, by identity. Safe with several threads and streams."""

    known: dict[int, Kept] = field(default_factory=dict)

    def __call__(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """bias [n] bf16, f16 or f32, or None -> [n] f32, contiguous, on the same device, or None."""
        if bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()):
            return bias
        kept = self.known.get(id(bias))
        if kept is not None and kept.at == bias.data_ptr() and kept.version == bias._version:
            return kept.wide
        return self._converted(bias, kept)

    def _converted(self, bias: torch.Tensor, old: Kept | None) -> torch.Tensor:
        """The bias converted, and kept where that is safe; what was kept for the same tensor is written anew."""
        fits = len(self.known) < MOST
        if old is not None:
            fits = (old.wide.shape, old.wide.device) == (bias.shape, bias.device)
        if not fits or bias.is_inference() or _is_capturing(bias):  # torch does not count changes in inference mode
            return bias.to(torch.float32).contiguous()
        version, at = bias._version, bias.data_ptr()
        with torch.inference_mode(False), torch.no_grad():
            wide = torch.empty(bias.shape, dtype=torch.float32, device=bias.device) if old is None else old.wide
            wide.copy_(bias)
        if bias.is_cuda:
            torch.cuda.current_stream(bias.device).synchronize()  # other streams read it without waiting for this one
        self.known[id(bias)] = Kept(bias, at, version, wide)
        return wide


def _is_capturing(bias: torch.Tensor) -> bool:
    return bias.is_cuda and torch.cuda.is_current_stream_capturing()
