"""Packing a layer for a kernel, all or nothing: whatever a constructor does, the layer's tensors stay as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from kerneltable.errors import KernelTableError
from kerneltable.kernels import registry
from kerneltable.model import CHECKPOINT, Device, Problem, Scheme, Table
from kerneltable.run.place import chip_for, device_for, features_of, packing_on
from kerneltable.run.trial import copied, put_back
from kerneltable.select import complete

if TYPE_CHECKING:
    from kerneltable.kernels.contract import BoundKernel


def construct(table: Table, kernel: str, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> BoundKernel:
    """Load a kernel and pack the layer: its constructor gets the row's parameters, each in the row's own spelling.

    problem   completed here, so that a constructor sees no None among the quantization details
    errors    ImportError and whatever else the kernel raises
    """
    return pack(table, kernel, registry.load(kernel), problem, tensors)


def pack(
    table: Table, kernel: str, adapter: Any, problem: Problem, tensors: Mapping[str, torch.Tensor],
    *, device: Device | None = None, packed: dict[str, Any] | None = None,
) -> BoundKernel:  # fmt: skip
    """Call the constructor of a loaded kernel.

    device    the one that decides; None: that of the tensors. A constructor with a parameter `chip` gets its chip, one
              with `features` those of its architecture
    packed    what kernels packed for these tensors, by layout; one with a parameter `packed` shares it or adds its own
    """
    scheme = table.schemes[problem.scheme]
    arguments: dict[str, Any] = {
        spelling: tensors.get(canonical_name(scheme, spelling)) for spelling in table.kernels[kernel].parameters
    }
    where = tensors["weight"].device
    taken = signature(adapter).parameters
    if registry.CHIP in taken:
        arguments[registry.CHIP] = chip_for(table, device or device_for(where, table), where)
    if registry.FEATURES in taken:
        arguments[registry.FEATURES] = features_of(table, device or device_for(where, table))
    layout = table.kernels[kernel].layout
    shares = packed is not None and layout != CHECKPOINT and registry.PACKED in taken
    if packed is not None and shares:
        arguments[registry.PACKED] = packed.get(layout)
    with packing_on(where):
        built: BoundKernel = adapter(complete(scheme, problem), **arguments)
    if packed is not None and shares:
        packed.setdefault(layout, getattr(built, registry.PACKED))
    return built


def pack_safely(
    table: Table, kernel: str, adapter: Any, problem: Problem, tensors: Mapping[str, torch.Tensor],
    *, device: Device | None = None, packed: dict[str, Any] | None = None,
) -> BoundKernel:  # fmt: skip
    """Call the constructor of a loaded kernel, and put back what it changed of the layer.

    A copy of the layer's tensors lives as long as the constructor runs, where memory has room for it.
    errors    whatever the kernel raises; KernelTableError when it changed a tensor that it was given
    """
    copies = copied(tensors)
    try:
        built = pack(table, kernel, adapter, problem, tensors, device=device, packed=packed)
    finally:
        changed = [name for name, copy in copies.items() if put_back(tensors[name], copy)]
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


def held_bytes(kernels: Iterable[tuple[str, object]], tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Bytes that bound kernels hold beside a layer's own tensors, by kernel id; what two share counts once."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    found: dict[str, int] = {}
    for name, kernel in kernels:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors_of(kernel)}
        found[name] = found.get(name, 0) + sum(size for address, size in storages.items() if address not in seen)
        seen |= set(storages)
    return found


def holds(kernel: object, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a bound kernel refers to the memory of one of these tensors."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return any(tensor.untyped_storage().data_ptr() in ours for tensor in _tensors_of(kernel))


def _tensors_of(value: object, depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors that an object refers to, in its attributes and in containers, as deep as adapters nest them."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    inside: Iterable[object] = ()
    if isinstance(value, (tuple, list)):
        inside = value
    elif isinstance(value, dict):
        inside = value.values()
    elif not isinstance(value, (type, ModuleType)):
        slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
        inside = (*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots))
    for part in inside if depth else ():
        yield from _tensors_of(part, depth - 1)
