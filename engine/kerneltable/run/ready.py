"""A plan that is ready for calls, and the tensors that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from kerneltable.formats import FORMATS
from kerneltable.run.place import Run
from kerneltable.run.plan import Plan

Pin = tuple[str, Tensor | None, Callable[[], int], int]
"""A tensor that was packed: its name, itself (None: released), what tells its address in memory, and what that told.

The address is another one when the tensor was given other memory, through its .data or by resizing its storage.
"""


@dataclass(frozen=True, slots=True)
class Ready:
    """A layer's plan for one dtype of x, and what it rests on.

    run     the plan's call, with the layer's device as the current one
    place   where x must be
    pins    the tensors that were packed: when one is another object now, or elsewhere in memory, this is out of date
    bias    the layer's, checked: another one is checked before this is called with it
    """

    plan: Plan
    run: Run
    place: torch.device
    pins: tuple[Pin, ...]
    bias: Tensor | None

    def fits(self, buffers: Mapping[str, Tensor | None]) -> bool:
        """Whether a layer with these buffers is the one that was packed."""
        return all(buffers[name] is packed and address() == at for name, packed, address, at in self.pins)

    def takes(self, bias: Tensor | None) -> bool:
        """Whether the kernels were chosen for a layer with such a bias: that it has one decides, not its numbers."""
        return (bias is None) == (self.bias is None)


def pinned(tensors: Mapping[str, Tensor | None]) -> tuple[Pin, ...]:
    """A layer's tensors, None for released ones, as they are in memory now."""
    asked = [(name, tensor, int if tensor is None else tensor.data_ptr) for name, tensor in tensors.items()]
    return tuple((name, tensor, address, address()) for name, tensor, address in asked)


def own_buffers(pins: Mapping[str, Tensor | None]) -> dict[str, ref[Tensor]]:
    """Which tensors a layer was built, loaded or moved with; one assigned to it later is another."""
    return {name: ref(tensor) for name, tensor in pins.items() if tensor is not None}


def are_own(pins: Mapping[str, Tensor | None], own: Mapping[str, ref[Tensor]]) -> bool:
    """Whether these are the tensors that `own_buffers` was given."""
    return all(tensor is None or (name in own and own[name]() is tensor) for name, tensor in pins.items())


def torch_dtype(format: str) -> torch.dtype:
    """The torch dtype of a format of the table ("bf16")."""
    found: torch.dtype = getattr(torch, FORMATS[format].torch_dtype)
    return found
