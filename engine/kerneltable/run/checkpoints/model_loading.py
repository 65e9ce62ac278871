"""A whole model from a checkpoint folder, with a table, a device and a kernel of the caller's choice."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.blame import speaks_of_checkpoint
from kerneltable.run.checkpoints.checkpoint import read_config
from kerneltable.run.checkpoints.model_quantizer import METHODS, Options, Section, register, registered, unregister
from kerneltable.run.checkpoints.shards import read_json
from kerneltable.run.faults import reason_of
from kerneltable.run.place import present_device, shipped_table, torch_device

if TYPE_CHECKING:
    from collections.abc import Mapping

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

    A layer whose weight the model's own code reads (a router that calls F.linear itself) becomes a plain linear of the
    numbers that its codes stand for, with a warning; no kernel computes it.

    model_dir    a folder with config.json and safetensors; read as data, nothing in it is executed
    table        None: the shipped table
    device       a Device, a name of the table ("cuda", "cpu", "h200"), or None for the present machine's
    kernel       a kernel that every layer must take, else NoKernelError
    verify       which calls of the layers are held against the reference, as in QuantLinear.from_tensors
    keep_checkpoint  False: weights are held once where a packed copy can stand for them, as there; what save_pretrained
                 and state_dict need is made again for them
    dtype        what the model computes in: bfloat16, float16, float32, or "auto" for the config's own
    model_class  None: transformers.AutoModelForCausalLM. A class that config.json's `architectures` does not name may
                 have a head that the files lack: it starts at random, and transformers warns of it
    options      further arguments of from_pretrained, such as attn_implementation
    errors       CheckpointError naming file, layer, or tensors that the model needs and the files lack; ProblemError
                 (device), NoKernelError; running out of memory and errors of the device pass as they are
    """
    folder = Path(model_dir)
    read_config(folder)
    table = table or shipped_table()
    found = present_device(device, table)
    place = torch_device(found)
    if find_spec("accelerate") is not None:
        options.setdefault("device_map", {"": place})
    wants_report = options.pop("output_loading_info", False)
    refuses_sizes = not options.pop("ignore_mismatched_sizes", False)
    chosen = Options(table, found, kernel, verify, keep_checkpoint)
    auto = model_class or transformers.AutoModelForCausalLM
    model, report = _from_pretrained(folder, auto, chosen, {"dtype": dtype, **options})
    gaps = _gaps(model, report, may_have_new_head=model_class is not None)
    if refuses_sizes:
        gaps |= _other_sizes(report)
    if gaps:
        raise CheckpointError(_gap_text(folder, type(model).__name__, gaps))
    loaded: Any = (model, report) if wants_report else model
    return loaded  # type: ignore[no-any-return]


def _from_pretrained(folder: Path, auto: Any, chosen: Options, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model, and transformers' report of what was missing in the files or had another size there."""
    data_only = {"local_files_only": True, "trust_remote_code": False}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    was_registered = registered()
    register()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **data_only)
        config.quantization_config = _section(folder, config, chosen)
        model, report = auto.from_pretrained(folder, config=config, **data_only, **told, **options)
    except Exception as error:  # a config's and a model's code may raise anything
        if not speaks_of_checkpoint(error):
            raise
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {reason_of(error)}; next: hold config.json against the files, and "
            f"against what transformers {transformers.__version__} knows"
        ) from error
    finally:
        if not was_registered:
            unregister()
    return model, report


def _gaps(model: PreTrainedModel, report: Mapping[str, Any], may_have_new_head: bool) -> dict[str, str]:
    """Tensors that the model needs and the files lack: random numbers stand in their place.

    Tied weights, buffers that are never saved and what the model's class lets be missing are not among them; nor, for a
    class that the checkpoint was not made from, is what lies outside of the base model.
    """
    prefix = f"{model.base_model_prefix}."
    other_class = may_have_new_head and type(model).__name__ not in (model.config.architectures or ())
    lenient = other_class and model.base_model is not model
    missing = [key for key in report["missing_keys"] if not lenient or key.startswith(prefix)]
    return dict.fromkeys(missing, "missing in the files")


def _other_sizes(report: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"the files have {list(in_files)}, the model's config makes it {list(in_model)}"
        for key, in_files, in_model in report["mismatched_keys"]
    }


def _gap_text(folder: Path, model: str, gaps: Mapping[str, str]) -> str:
    lines = [f"  {key}: {why}" for key, why in sorted(gaps.items())]
    more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
    head = f"{folder}: {model} cannot be loaded: {len(gaps)} of its tensors are missing, or of another size:"
    step = "  next: complete the download, or correct config.json (sizes, number of layers, tied embeddings)"
    return "\n".join([head, *lines[:20], *more, step])


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
