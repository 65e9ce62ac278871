"""transformers' quantizer for checkpoints whose linears kerneltable computes, and how it takes its place there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.checkpoint import sort_layers
from kerneltable.run.checkpoints.model_layers import bind_layers, place_layers
from kerneltable.run.checkpoints.quantization_config import read_quantization
from kerneltable.run.checkpoints.shards import read_headers
from kerneltable.run.layer import INPUT_FORMATS
from kerneltable.run.place import shipped_table, torch_device

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

    from kerneltable.model import Device, Table

METHODS = ("fp8", "compressed-tensors", "modelopt")
"""Values of a config's quant_method whose checkpoints come to kerneltable."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller chose; None: the shipped table, each tensor's own device, the kernel of the table,
    checks as the ledger says. keep_checkpoint False: weights are held once where a packed copy can stand for them."""

    table: Table | None = None
    device: Device | None = None
    kernel: str | None = None
    verify: str | None = None
    keep_checkpoint: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Section(dict[str, Any]):
    """The quantization part of a config.json as transformers carries it around, with the caller's options."""

    options = Options()


class KernelTableConfig(QuantizationConfigMixin):  # type: ignore[misc, unused-ignore]
    """The quantization part of a config.json, kept as it is. Nothing in it is imported or run."""

    instead_of: type[Any] | None = None

    def __init__(self, section: Mapping[str, Any], options: Options) -> None:
        self.quant_method: Any = section.get("quant_method")
        self.section = deepcopy(dict(section))
        self.options = options

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """transformers' entry: the section of config.json, and options if it is a Section."""
        config = cls(config_dict, getattr(config_dict, "options", Options()))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """What save_pretrained writes: the section as it came, and layers that are quantized no more as ignored."""
        return deepcopy(self.section)

    def leave_alone(self, layers: Sequence[str]) -> None:
        """Name layers that became plain linears among those that the section ignores."""
        key = "modules_to_not_convert" if self.quant_method == "fp8" else "ignore"
        if layers:
            self.section[key] = [*(self.section.get(key) or ()), *layers]


class KernelTableQuantizer(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """Loads a quantized checkpoint so that each quantized linear becomes a QuantLinear.

    Quantizing a model on the fly stays with the quantizer that transformers has for the method (`instead_of`).
    """

    requires_calibration = True
    instead_of: type[Any] | None = None

    def __new__(cls, quantization_config: Any = None, **kwargs: Any) -> Any:
        """This quantizer for a checkpoint that is quantized (and for a copy); transformers' for one to be."""
        ours = isinstance(quantization_config, KernelTableConfig)
        if quantization_config is None or (ours and kwargs.get("pre_quantized", True)):
            return super().__new__(cls)
        if cls.instead_of is None or (ours and quantization_config.instead_of is None):
            raise CheckpointError("kerneltable.transformers loads quantized checkpoints; it does not quantize models")
        config = quantization_config.instead_of.from_dict(quantization_config.section) if ours else quantization_config
        return cls.instead_of(config, **kwargs)

    def __init__(self, quantization_config: KernelTableConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.options = quantization_config.options
        self.section = quantization_config.section
        self.input = "bf16"

    @property
    def table(self) -> Table:
        """The caller's table, else the shipped one."""
        return self.options.table or shipped_table()

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype the model computes in: bf16 where the files would make it an 8-bit one.

        errors   CheckpointError for a dtype that no kernel takes as input
        """
        found = torch.bfloat16 if dtype.itemsize == 1 else dtype
        if found not in INPUT_FORMATS:
            raise CheckpointError(f"dtype: wanted bfloat16, float16 or float32; found {dtype}; pass one of them")
        return found

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put waiting layers in the places of the quantized linears; transformers then loads all tensors itself."""
        if not checkpoint_files:
            raise CheckpointError("from_pretrained: wanted a folder or repository with safetensors; found a state dict")
        files = [Path(file) for file in checkpoint_files]
        entries = read_headers(files)
        folder = files[0].parent
        quantization = read_quantization({"quantization_config": self.section}, str(folder))
        contents = sort_layers(entries, quantization, self.table.schemes)
        self.input = INPUT_FORMATS[model.dtype]
        place_layers(model, contents, entries, folder)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Bind every layer to its kernel, on the device that was asked for."""
        if self.options.device is not None:
            torch.nn.Module.to(model, torch_device(self.options.device))
        caller = self.options
        chosen = {"kernel": caller.kernel, "verify": caller.verify, "keep_checkpoint": caller.keep_checkpoint}
        options = {"input": self.input, "output": None, "model": model.name_or_path, **chosen}
        plain = bind_layers(model, self.table, self.options.device, options)
        config: Any = self.quantization_config
        config.leave_alone(plain)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """save_pretrained writes the checkpoint back as it was read: QuantLinear keeps tensors and names."""
        return True

    @property
    def is_trainable(self) -> bool:
        """QuantLinear has no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """torch.compile may take the model whole."""
        return True


def register() -> None:
    """Let from_pretrained give checkpoints of METHODS to kerneltable. Calling it again changes nothing.

    transformers' register_quantizer takes new names only; fp8 and compressed-tensors are names it has, so their entries
    in its mappings are replaced, and the replaced classes kept for `unregister` and for quantizing on the fly.
    """
    for method in METHODS:
        _replace(AUTO_QUANTIZER_MAPPING, method, KernelTableQuantizer)
        _replace(AUTO_QUANTIZATION_CONFIG_MAPPING, method, KernelTableConfig)


def unregister() -> None:
    """Give these checkpoints back to transformers' own quantizers, for models loaded from now on."""
    mappings: tuple[dict[str, Any], ...] = (AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING)
    for mapping in mappings:
        for method in METHODS:
            entry = mapping.get(method)
            if entry is not None and issubclass(entry, KernelTableQuantizer | KernelTableConfig):
                mapping.pop(method) if entry.instead_of is None else mapping.update({method: entry.instead_of})


def registered() -> bool:
    """True while from_pretrained gives checkpoints to kerneltable."""
    return issubclass(AUTO_QUANTIZER_MAPPING["fp8"], KernelTableQuantizer)


def _replace(mapping: dict[str, Any], method: str, ours: type[Any]) -> None:
    entry = mapping.get(method)
    if entry is None or not issubclass(entry, ours):
        mapping[method] = type(ours.__name__, (ours,), {"instead_of": entry, "__doc__": ours.__doc__})
