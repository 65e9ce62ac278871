"""The registered op kerneltable::linear: all that torch.compile, torch.export and CUDA graphs see of a layer.

The op names its layer by a handle, a tensor of 16 bytes that the layer owns. An int would be a constant of the traced
graph, so each layer would be traced anew; a tensor is an input, so equal layers share one graph, and CUDA graph trees,
which compare the addresses of such inputs, never replay the graph of one layer for another. The kernel is looked up
when the op runs: the number of rows decides it then, and is never frozen into a graph.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.autograd import forward_ad

from kerneltable.errors import KernelInputError
from kerneltable.ops.torch_dynamo import untraced

Run = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

NAMESPACE = "kerneltable"
SCHEMA = "linear(Tensor x, Tensor handle, int n, int k, ScalarType? dtype=None) -> Tensor"
HANDLE_BYTES = 16

UNFOLLOWED = "unfollowed(Tensor x, str name) -> Tensor"
"""An op without numbers, whose call is refused while torch.func follows x for a gradient; see refuse_followed."""


class Served(Protocol):
    """A layer as the op sees it."""

    def serve(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., k] to [..., n], a new contiguous tensor."""
        ...

    def after_fork(self) -> None:
        """Make good what a fork broke, in the child: locks that other threads held, device contexts."""
        ...


@dataclass(frozen=True, slots=True)
class Register:
    """The op, and the layers that its handles stand for: address of a handle -> layer. One a process, as torch's is.

    kept   handles that a CUDA graph was captured with: their addresses are never given to another layer
    """

    op: Any
    library: torch.library.Library
    layers: dict[int, weakref.ref[Any]] = field(default_factory=dict)
    kept: dict[int, torch.Tensor] = field(default_factory=dict)

    def enter(self, layer: Served, where: torch.device) -> torch.Tensor:
        """A new handle for a layer, [16] uint8 at `where`; on meta it stands for nothing."""
        with torch.inference_mode(False):
            handle = torch.zeros(HANDLE_BYTES, dtype=torch.uint8, device=where)
        if not handle.is_meta:
            address = handle.data_ptr()
            self.layers[address] = weakref.ref(layer, lambda gone: self._remove(address, gone))
        return handle

    def leave(self, layer: Served, handle: torch.Tensor | None) -> None:
        """Forget a handle that its layer gives up."""
        known = None if handle is None or handle.is_meta else self.layers.get(handle.data_ptr())
        if handle is not None and known is not None and known() is layer:
            del self.layers[handle.data_ptr()]

    def kept_through_captures(
        self, run: Run, handle: torch.Tensor, captured: list[Run], capturing: Callable[[], bool]
    ) -> Run:
        """run, kept in `captured` when a CUDA graph is captured with it: replays use the memory that it holds."""

        def watched(rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            if capturing() and run not in captured:
                captured.append(run)
                self.kept[handle.data_ptr()] = handle
            return run(rows, bias)

        return watched

    def layer(self, handle: torch.Tensor) -> Served:
        """The layer of a handle. errors: KernelInputError when no living layer has it."""
        known = self.layers.get(handle.data_ptr())
        layer: Served | None = None if known is None else known()
        if layer is None:
            raise KernelInputError(
                f"{NAMESPACE}::linear: no layer has this handle ({handle.dtype} {list(handle.shape)} on "
                f"{handle.device}); the layer is gone, or its buffers were replaced: then call layer.repack()"
            )
        return layer

    def after_fork(self) -> None:
        """Tell every layer that this process is a forked child."""
        for known in list(self.layers.values()):
            layer = known()
            if layer is not None:
                layer.after_fork()

    def _remove(self, address: int, gone: weakref.ref[Any]) -> None:
        if self.layers.get(address) is gone:
            del self.layers[address]


def register() -> Register:
    """The op of this process."""
    return _REGISTER


def _define() -> Register:
    """Define the op. Done when this module is imported, by one thread: torch refuses a second time."""
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("linear", _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::linear", _shape, lib=library)
    library.define(UNFOLLOWED, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("unfollowed", _refuse_followed, "Autograd")
    library.impl("unfollowed", _no_numbers, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::unfollowed", _no_numbers, lib=library)
    found = Register(getattr(torch.ops, NAMESPACE).linear.default, library)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=found.after_fork)
    return found


@untraced
def _run(x: torch.Tensor, handle: torch.Tensor, n: int, k: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x [..., k] to [..., n] in dtype, else in that of x; the layer computes it as a direct call would."""
    out = register().layer(handle).serve(x)
    wanted = dtype or x.dtype
    if out.shape[-1:] != (n,) or out.dtype != wanted:
        raise KernelInputError(
            f"{NAMESPACE}::linear: traced for n = {n} in {wanted}; the layer gives {list(out.shape)} {out.dtype}; "
            "trace it again"
        )
    return out


def _shape(x: torch.Tensor, handle: torch.Tensor, n: int, k: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What _run would return, without numbers."""
    if x.dim() == 0 or x.shape[-1] != k:
        raise KernelInputError(f"the last dimension of x must be k = {k}; found {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], n), dtype=dtype or x.dtype)


def refuse_followed(x: torch.Tensor, name: str) -> None:
    """Refuse a layer's input that torch.func follows for a gradient, where torch.compile traces a graph.

    The code that is traced sees no transform. But torch runs each op of a graph on fake tensors, and the Autograd key
    of this one sees what the transform follows. Nobody uses what it returns, so compilers drop it. The layer's own op
    has no such key: it would cost every call 2 to 4 us.
    errors   KernelInputError, as it is or quoted in an error of torch.compile, as torch's version has it
    """
    getattr(torch.ops, NAMESPACE).unfollowed(x, name)


def gradient_followed(x: torch.Tensor, name: str) -> KernelInputError:
    return KernelInputError(
        f"{name}: x must be no tensor whose gradient torch.func follows (grad, vjp, jvp): a quantized layer has none; "
        f"found {list(x.shape)} in {x.dtype}; compute the layer outside of the transformed function"
    )


def _refuse_followed(x: torch.Tensor, name: str) -> torch.Tensor:
    if x.requires_grad or forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        raise gradient_followed(x, name)
    return _no_numbers(x, name)


def _no_numbers(x: torch.Tensor, name: str) -> torch.Tensor:
    return x.new_empty(0)


_REGISTER = _define()
