"""Whether a packed copy can stand for the checkpoint's tensors of a layer, and what a layer says about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kerneltable.errors import KernelTableError
from kerneltable.kernels import registry
from kerneltable.model import CHECKPOINT
from kerneltable.run.tensor_source import PackedCopy, TensorSource
from kerneltable.select.terms import size_text

if TYPE_CHECKING:
    from kerneltable.run.plan import Plan


def release(source: TensorSource, plans: Sequence[Plan]) -> str | None:
    """Let a packed copy stand for a layer's tensors, where every kernel that computes some m works from packed ones.

    The kernels of all bands are packed for this, one after the other, until one is found that needs the tensors.
    plans     of the layer, one for each dtype of x that is bound, all with this source
    returns   None: released; else why not, and everything is as before
    """
    found: PackedCopy | None = None
    for plan in plans:
        for m, kernel in plan.firsts():
            copy = _copy(plan, kernel, m)
            if isinstance(copy, str):
                return copy
            found = found or copy
    calls = {bound.kernel: (plan.table.kernels[bound.kernel], bound.call) for plan in plans for bound in plan.bound()}
    reader = next((kernel for kernel, (row, _) in calls.items() if row.layout == CHECKPOINT), None)
    if found is None or reader is not None:
        return f"{reader or 'nothing'} is bound, and works from the checkpoint's own tensors"
    return source.release(found, {kernel: call for kernel, (_, call) in calls.items()})


def _copy(plan: Plan, kernel: str | None, m: int) -> PackedCopy | str:
    """What the kernel for m packed, with the way back; or why its layer's tensors are needed beside it."""
    layout = CHECKPOINT if kernel is None else plan.table.kernels[kernel].layout
    if layout == CHECKPOINT:
        return f"{kernel or 'nothing'} computes m = {m}, from the checkpoint's own tensors"
    try:
        call, packer = plan.kernel_for(m), plan.id_for(m)
    except (KernelTableError, torch.OutOfMemoryError) as error:
        return f"no kernel for m = {m} can be packed: {str(error).splitlines()[0]}"
    if packer != kernel:
        return _copy(plan, packer, m)
    problem = plan.problem
    unpack, packed = getattr(call, registry.UNPACK, None), getattr(call, registry.PACKED, None)
    if unpack is None or packed is None:
        return f"{kernel} computes m = {m}, and its layout '{layout}' cannot be unpacked"
    return PackedCopy(packer, layout, lambda: unpack(problem, packed))


def release_lines(source: TensorSource | None, held: Mapping[str, Tensor], why_kept: str | None) -> list[str]:
    """What `explain` says of a layer that was asked to hold its weights once; nothing of one that was not.

    held       the checkpoint's tensors that are in memory
    why_kept   why nothing was released; None: it was not asked for, or not tried yet
    """
    if source is None or source.copy is None:
        return [] if why_kept is None else [f"  kept     the checkpoint's tensors: {why_kept}"]
    gone = [name for name in source.released if name not in held]
    if not gone:
        return [f"  kept     {', '.join(source.released)}: unpacked again for a kernel that works from them"]
    size = sum(source.outlines()[name].nbytes for name in gone)
    return [f"  released {', '.join(gone)}: {size_text(size)}, unpacked from {source.copy.layout} when asked for"]
