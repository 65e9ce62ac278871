"""What torch does around a call: traces, modes and transforms, and tensors in them that no kernel can read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._C import _functorch, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.fx import Proxy

from kerneltable.errors import KernelInputError, LayerError
from kerneltable.ops.torch_dynamo import constant_in_graphs
from kerneltable.ops.torch_op import gradient_followed


def is_transforming() -> bool:
    """Whether torch.jit.trace, torch.func or a dispatch mode (fake tensors, a recorder) acts on operations here.

    None of them sees what a kernel writes through data pointers. For them a layer is one op; while that runs this is
    False again. A trace of torch.fx alone does not count: the op runs inside it.
    """
    return _is_tracing() or _functorch.maybe_current_level() is not None or _len_torch_dispatch_stack() > 0


def check_traceable(x: object, name: str) -> None:
    """KernelInputError unless x may go into the op of a layer: a tensor with strides, not followed, or a proxy."""
    if not isinstance(x, Tensor):
        if not isinstance(x, Proxy):
            raise KernelInputError(
                f"{name}: x must be a tensor; found {type(x).__name__}; give it as torch.Tensor [..., k]"
            )
    elif (strange := _laid_out(x)) is not None:
        raise not_plain(strange, name)
    elif _follows_gradient(x):
        raise gradient_followed(x, name)


@constant_in_graphs
def gradients_are_followed() -> bool:
    """Whether a transform of torch.func for gradients is under way, whatever it follows: what a graph can be told."""
    followed = (TransformType.Grad, TransformType.Jvp)
    return any(interpreter.key() in followed for interpreter in _functorch.get_interpreter_stack() or ())


def _follows_gradient(x: Tensor) -> bool:
    """Whether torch.func follows x for a gradient, be it under other transforms, or as linearize does."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def not_plain(strange: str, name: str) -> KernelInputError:
    return KernelInputError(f"{name}: x must be a plain tensor; found {strange}; convert it first")


def _laid_out(tensor: Tensor) -> str | None:
    """What a tensor is that is nested or sparse; None for one with strides."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return f"a {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')} tensor"
    return None


def unreadable(tensor: object) -> str | None:
    """What something is that has no numbers in plain memory, here or on meta; None for a tensor that has.

    returns  "NoneType", "a tensor of torch.func", "a sparse_coo tensor", ...
    """
    from torch._subclasses.fake_tensor import FakeTensor

    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    if isinstance(tensor, FakeTensor):
        return "a fake tensor"
    if _functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor of torch.func (vmap, grad, jvp)"
    if (laid_out := _laid_out(tensor)) is not None:
        return laid_out
    if tensor.is_neg():
        return "a tensor whose sign is not applied (x.resolve_neg() applies it)"
    if not torch._C._has_storage(tensor):
        return f"a {type(tensor).__name__} without memory of its own"
    return _cut_off(tensor)


def _cut_off(tensor: Tensor) -> str | None:
    """What is wrong with a tensor that reaches past its memory, which was freed or cut; None for any other."""
    if tensor.numel() == 0:
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    wanted = (tensor.storage_offset() + 1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize
    there = tensor.untyped_storage().nbytes()
    return None if wanted <= there else f"a tensor whose memory was freed ({there} bytes are left of {wanted})"


def check_readable(tensors: Mapping[str, object], name: str) -> None:
    """LayerError unless each of a layer's tensors, None for one that is not there, is a plain one in memory or meta."""
    for key, tensor in tensors.items():
        strange = None if tensor is None else unreadable(tensor)
        if strange is not None:
            raise LayerError(f"{name}: {key} must be a plain tensor; found {strange}; give its values as torch.Tensor")
