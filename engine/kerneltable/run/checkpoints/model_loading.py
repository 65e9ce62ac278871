"""A whole model from a checkpoint folder, with a table, a device and a kernel of the caller's choice."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.checkpoint import read_config
from kerneltable.run.checkpoints.model_quantizer import METHODS, Options, Section, register, registered, unregister
from kerneltable.run.checkpoints.shards import read_json
from kerneltable.run.place import present_device, shipped_table, torch_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kerneltable.model import Device, Table


def load(
    model_dir: str | Path,
    table: Table | None = None,
    device: Device | str | None = None,
    *,
    kernel: str | None = None,
    verify: str | None = None,
    keep_checkpoint: bool = True,
    dtype: torch.dtype | str = "auto",
    model_class: Any = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a model whose quantized linears are QuantLinear layers, in evaluation mode.

    model_dir    a folder with config.json and safetensors; read as data, nothing in it is executed
    table        None: the shipped table
    device       a Device, a name of the table ("cuda", "cpu", "h200"), or None for the present machine's
    kernel       a kernel that every layer must take, else NoKernelError
    verify       which calls of the layers are held against the reference, as in QuantLinear.from_tensors
    keep_checkpoint  False: weights are held once where a packed copy can stand for them, as there; what save_pretrained
                 and state_dict need is made again for them
    dtype        what the model computes in: bfloat16, float16, float32, or "auto" for the config's own
    model_class  None: transformers.AutoModelForCausalLM
    options      further arguments of from_pretrained, such as attn_implementation
    errors       CheckpointError naming file or layer, ProblemError (device), NoKernelError
    """
    folder = Path(model_dir)
    read_config(folder)
    table = table or shipped_table()
    found = present_device(device, table)
    place = torch_device(found)
    if find_spec("accelerate") is not None:
        options.setdefault("device_map", {"": place})
    was_registered = registered()
    register()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.quantization_config = _section(folder, config, Options(table, found, kernel, verify, keep_checkpoint))
        auto = model_class or transformers.AutoModelForCausalLM
        model: PreTrainedModel = auto.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    finally:
        if not was_registered:
            unregister()
    return model


def _section(folder: Path, config: Any, options: Options) -> Section:
    """The quantization part of the config, wherever it is, with the options."""
    holders = (config, config.get_text_config(decoder=True))
    found = next((part for holder in holders if (part := getattr(holder, "quantization_config", None))), None)
    if found is None and (folder / "hf_quant_config.json").exists():
        found = {"quant_method": "modelopt", **read_json(folder / "hf_quant_config.json")}
    if not isinstance(found, dict) or str(found.get("quant_method")) not in METHODS:
        raise CheckpointError(
            f"{folder}: wanted a 'quantization_config' with a quant_method of {', '.join(METHODS)}; "
            f"found {'none' if found is None else repr(dict(found).get('quant_method'))}"
        )
    section = Section(found)
    section.options = options
    return section
