"""Packing a layer for a kernel, all or nothing: whatever a constructor does, the layer's tensors stay as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kerneltable.errors import KernelTableError
from kerneltable.kernels import registry
from kerneltable.model import Problem, Scheme, Table
from kerneltable.run.place import packing_on
from kerneltable.run.trial import same_bytes
from kerneltable.select import complete

if TYPE_CHECKING:
    from kerneltable.kernels.contract import BoundKernel


def construct(table: Table, kernel: str, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> BoundKernel:
    """Load a kernel and pack the layer: its constructor gets the row's parameters, each in the row's own spelling.

    problem   completed here, so that a constructor sees no None among the quantization details
    errors    ImportError and whatever else the kernel raises
    """
    return pack(table, kernel, registry.load(kernel), problem, tensors)


def pack(table: Table, kernel: str, adapter: Any, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> BoundKernel:
    """Call the constructor of a loaded kernel."""
    scheme = table.schemes[problem.scheme]
    arguments: dict[str, Any] = {
        spelling: tensors.get(canonical_name(scheme, spelling)) for spelling in table.kernels[kernel].parameters
    }
    with packing_on(tensors["weight"].device):
        built: BoundKernel = adapter(complete(scheme, problem), **arguments)
    return built


def pack_safely(
    table: Table, kernel: str, adapter: Any, problem: Problem, tensors: Mapping[str, torch.Tensor]
) -> BoundKernel:
    """Call the constructor of a loaded kernel, and put back what it changed of the layer.

    A copy of the layer's tensors lives as long as the constructor runs, where memory has room for it.
    errors    whatever the kernel raises; KernelTableError when it changed a tensor that it was given
    """
    copies = _copies(tensors)
    try:
        built = pack(table, kernel, adapter, problem, tensors)
    finally:
        changed = [name for name, copy in copies.items() if _restored(tensors[name], copy)]
    if changed:
        raise KernelTableError(
            f"it changed {', '.join(changed)} of the layer; a constructor must leave its tensors alone"
        )
    return built


def canonical_name(scheme: Scheme, spelling: str) -> str:
    """The scheme's own name of a parameter that a row or a checkpoint may spell by an alias."""
    for parameter in scheme.parameters.values():
        if spelling == parameter.name or spelling in parameter.aliases:
            return parameter.name
    return spelling


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        return {name: tensor.detach().clone() for name, tensor in tensors.items() if not tensor.is_meta}
    except torch.OutOfMemoryError:
        return {}


def _restored(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Put a tensor's bytes back; True when they had changed."""
    if same_bytes(copy, tensor):
        return False
    tensor.copy_(copy)
    return True
