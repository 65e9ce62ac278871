"""Quantized linears inside a transformers model: found by name, kept waiting while it loads, then bound to kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from kerneltable.errors import CheckpointError, KernelInputError, LayerError
from kerneltable.run.checkpoints.checkpoint import Contents, Found, quant_linear, refusal_text
from kerneltable.run.checkpoints.direct_reads import direct_reads
from kerneltable.run.checkpoints.widened import say_widened, widened_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kerneltable.model import Device, Table
    from kerneltable.run.checkpoints.group_format import GroupFormat
    from kerneltable.run.checkpoints.shards import Entry

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "U8": torch.uint8,
    }
)
"""safetensors' spelling of a dtype -> torch's, for what a scheme's tensors may be."""


class Pending(torch.nn.Module):
    """A quantized linear whose tensors are not there yet: parameters on meta, shaped and named as in the files."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.form: GroupFormat = found.format
        self.source = next((entry.name.rpartition(".")[0] for entry in found.entries.values()), "")
        for part, entry in found.entries.items():
            empty = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            self.register_parameter(part, torch.nn.Parameter(empty, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A layer that waits computes nothing: KernelInputError."""
        raise KernelInputError("layer: its tensors are not loaded yet; finish from_pretrained first")


@dataclass(frozen=True, slots=True)
class Names:
    """How transformers finds the module of a checkpoint's tensor: its own renamings, and the base model's prefix."""

    renamings: list[WeightRenaming]
    converters: list[WeightConverter]
    prefix: str
    state: dict[str, torch.Tensor]

    def module_of(self, layer: str) -> str | None:
        """The module that takes this layer's weight; None when there is none, or it is merged with other weights."""
        key, merged = rename_source_key(f"{layer}.weight", self.renamings, self.converters, self.prefix, self.state)
        if key not in self.state and f"{layer}.weight" in self.state:
            key, merged = f"{layer}.weight", None
        return key.removesuffix(".weight") if merged is None and key in self.state else None


def names_of(model: PreTrainedModel) -> Names:
    """The naming rules of a model, as transformers itself will apply them."""
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    return Names(renamings, converters, model.base_model_prefix, model.state_dict())


def place_layers(model: PreTrainedModel, contents: Contents, entries: Mapping[str, Entry], folder: Path) -> None:
    """Put a Pending layer in the place of every nn.Linear that the checkpoint holds quantized.

    model     built on meta, not loaded
    contents  the checkpoint's layers, sorted; entries: all of its tensors
    errors    CheckpointError naming every quantized tensor that has no linear of its own in the model
    """
    refused = dict(contents.refused)
    found = {name: layer for name, layer in contents.linears.items() if not _ignored(model, f"{name}.weight")}
    names = names_of(model)
    places: dict[str, str] = {}
    for name, layer in found.items():
        module = names.module_of(name)
        why = _misfit(model, module, layer)
        if why is None and module is not None:
            places[name] = module
        else:
            refused[name] = f"{layer.format.scheme}: {why}"
    taken = {entry.name for layer in contents.linears.values() for entry in layer.entries.values()}
    strays = dict(_strays(model, entries, taken))
    refused |= {name: why for name, why in strays.items() if name.removesuffix(".weight") not in refused}
    if refused:
        raise CheckpointError(
            f"{refusal_text(folder, refused)}\n  next: kerneltable.transformers.unregister() gives this checkpoint "
            "to transformers' own loader; load_linears(..., strict=False) loads the linears alone"
        )
    for name, module in places.items():
        model.set_submodule(module, Pending(found[name]))


def bind_layers(
    model: torch.nn.Module, table: Table, device: Device | None, options: Mapping[str, Any]
) -> tuple[str, ...]:
    """Turn every Pending layer, loaded by now, into a QuantLinear; one after the other lets go of what it released.

    Layers whose weight the model's own code reads become plain linears, with a warning: codes would be read as numbers.

    device   None: where each layer's tensors are
    options  input, output, kernel, keep_checkpoint, as in load_linears
    returns  names, as in the files, of the layers that became plain linears
    errors   CheckpointError (a tensor is missing, offloaded, sharded or wrong), NoKernelError
    """
    waiting = {name: module for name, module in model.named_modules() if isinstance(module, Pending)}
    readers = direct_reads(model, waiting)
    say_widened(readers)
    plain = tuple(waiting[name].source for name in readers)
    for name in list(waiting):
        pending: Any = waiting.pop(name)
        tensors = dict(_loaded(name, pending))
        try:
            if name in readers:
                layer: Any = widened_linear(pending.form, tensors, table, options["input"], name)
            else:
                layer = quant_linear(pending.form, tensors, table, device, options, name)
        except LayerError as error:
            raise CheckpointError(str(error)) from error
        model.set_submodule(name, layer.train(pending.training))
    return plain


def _misfit(model: PreTrainedModel, module: str | None, found: Found) -> str | None:
    """Why a module cannot hold this layer; None when it can."""
    if module is None:
        return "the model has no linear of this name, or merges it with others (experts in 3-D tensors): not covered"
    linear = model.get_submodule(module)
    if type(linear) is not torch.nn.Linear:
        return f"wanted a torch.nn.Linear at '{module}'; found {type(linear).__name__}"
    weight = found.entries["weight"]
    if weight.shape != tuple(linear.weight.shape):
        return f"the files have {list(weight.shape)}, the model's config makes it {list(linear.weight.shape)}"
    if ("bias" in found.entries) != (linear.bias is not None):
        return f"bias: the files have {'one' if linear.bias is None else 'none'}, the model's config wants the opposite"
    if f"{module}.weight" in {key for pair in model.all_tied_weights_keys.items() for key in pair}:
        return f"'{module}' is tied to another weight; set tie_word_embeddings to false, or leave it unquantized"
    unknown = [f"{part} {entry.dtype}" for part, entry in found.entries.items() if entry.dtype not in DTYPES]
    return f"wanted dtypes {', '.join(DTYPES)}; found {', '.join(unknown)}" if unknown else None


def _strays(model: PreTrainedModel, entries: Mapping[str, Entry], taken: set[str]) -> Iterator[tuple[str, str]]:
    """8-bit float tensors that no layer takes: transformers would read their codes as plain numbers."""
    for name, entry in entries.items():
        if entry.dtype.startswith("F8_") and name not in taken and not _ignored(model, name):
            yield name, f"{entry.dtype} {list(entry.shape)}: no quantized linear of the config takes it"


def _ignored(model: PreTrainedModel, name: str) -> bool:
    """True for tensors that this model's class leaves unread, such as layers for multi-token prediction."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _loaded(name: str, pending: Pending) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a layer by their names in the files, each known to be whole and in place."""
    for part, tensor in pending.named_parameters(recurse=False):
        if tensor.is_meta:
            raise CheckpointError(
                f"{name}.{part}: was not loaded (missing in the files, or offloaded by device_map); "
                "kernels need it on one device"
            )
        if hasattr(tensor, "placements"):
            raise CheckpointError(
                f"{name}.{part}: is sharded over devices; load it without tp_plan and distributed_config"
            )
        yield part, tensor.detach()
