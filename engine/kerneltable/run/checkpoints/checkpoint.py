"""A checkpoint directory as a mapping: layer name -> QuantLinear, read and packed when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kerneltable.errors import CheckpointError, LayerError
from kerneltable.formats import FORMATS
from kerneltable.model import Device, Scheme, Table
from kerneltable.run.checkpoints.group_format import GroupFormat, Unsupported
from kerneltable.run.checkpoints.quantization_config import Json, Quantization, read_quantization
from kerneltable.run.checkpoints.shards import Entry, read_entries, read_json, read_tensors
from kerneltable.run.linear import QuantLinear
from kerneltable.run.place import present_device, shipped_table, torch_device
from kerneltable.run.reblock import plain_block_scale

if TYPE_CHECKING:
    import torch

BESIDE = frozenset({"k_scale", "v_scale", "q_scale", "kv_scale", "output_scale", "prob_scale"})
"""Scales of the key-value cache and of attention that some exporters put beside a linear: not a linear's business."""

WEIGHT_SIGNS = ("scale", "global_scale", "packed", "shape", "zero_point", "g_idx", "bitmask")
SIGNS = (*(f"weight_{sign}" for sign in WEIGHT_SIGNS), "input_scale", "activation_scale")
"""How the names of tensors begin that exporters put beside a quantized weight. PyTorch's own weight_g, weight_v (weight
norm) and weight_ih_l0 (recurrent layers) are plain."""

LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class Found:
    """A quantized linear in the files: its format and its tensors' entries, by their names in the layer."""

    format: GroupFormat
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Contents:
    """Every layer with a weight or scales, sorted: linears that a scheme covers, the rest with reasons."""

    linears: Mapping[str, Found]
    left_alone: Mapping[str, str]
    refused: Mapping[str, str]


class Checkpoint(Mapping[str, QuantLinear]):
    """The quantized linears of a directory by name, in the order of their names.

    Lazy: a layer's tensors are read, checked and packed each time it is asked for, and not kept.
    left_alone   name -> why the layer is not loaded (the config ignores it, or it is not quantized)
    refused      name -> format and what is missing, for quantized layers that no scheme covers
    """

    def __init__(
        self, folder: Path, contents: Contents, table: Table, device: Device, options: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.contents = contents
        self.table = table
        self.device = device
        self.options = MappingProxyType(dict(options))

    @property
    def left_alone(self) -> Mapping[str, str]:
        """Layers that are not quantized, or that the config ignores, with the reason."""
        return self.contents.left_alone

    @property
    def refused(self) -> Mapping[str, str]:
        """Quantized layers that cannot be loaded, with format and reason; empty for a strict load."""
        return self.contents.refused

    def __getitem__(self, name: str) -> QuantLinear:
        """Read, check and bind one layer.

        errors   KeyError (no such linear), CheckpointError (its tensors do not fit), NoKernelError
        """
        found = self.contents.linears[name]
        place = torch_device(self.device)
        tensors = {part: tensor.to(place) for part, tensor in read_tensors(found.entries).items()}
        try:
            return quant_linear(found.format, tensors, self.table, self.device, self.options, name)
        except LayerError as error:
            raise CheckpointError(f"{self.folder}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents.linears)

    def __len__(self) -> int:
        return len(self.contents.linears)


def quant_linear(
    form: GroupFormat,
    tensors: Mapping[str, torch.Tensor | None],
    table: Table,
    device: Device | None,
    options: Mapping[str, Any],
    name: str,
) -> QuantLinear:
    """Bind one layer of a checkpoint, whose tensors are in place.

    tensors  by their names in the checkpoint, bias among them if there is one
    device   None: that of the tensors
    options  input (None: bf16), output (None: that of the input), kernel (None: the table decides),
             model (None: unknown), verify (None: as the ledger says), keep_checkpoint (True)
    errors   LayerError, NoKernelError
    """
    if form.weight_granularity == "block":
        tensors = {key: None if given is None else plain_block_scale(given) for key, given in tensors.items()}
    return QuantLinear.from_tensors(
        form.scheme,
        tensors,
        table=table,
        device=device,
        input=options["input"] or "bf16",
        output=options["output"],
        weight_granularity=form.weight_granularity,
        weight_block=form.weight_block,
        input_granularity=form.input_granularity,
        input_scaling=form.input_scaling,
        verify=options.get("verify"),
        keep_checkpoint=options.get("keep_checkpoint", True),
        kernel=options["kernel"],
        name=name,
        model=options.get("model"),
    )


def load_linears(  # noqa: PLR0913  one keyword for each thing that a folder leaves open
    model_dir: str | Path,
    table: Table | None = None,
    device: Device | str | None = None,
    *,
    input: str | None = None,
    output: str | None = None,
    kernel: str | None = None,
    strict: bool = True,
    model: str | None = None,
    verify: str | None = None,
    keep_checkpoint: bool = True,
) -> Checkpoint:
    """Find the quantized linears of a Hugging Face FP8, compressed-tensors or ModelOpt checkpoint.

    model_dir  a folder with config.json (and hf_quant_config.json) and safetensors; read as data, nothing is executed
    device     where the layers go: a Device, a name of the table, or None for the present machine's
    input      dtype of x: bf16, f16, f32; None: the config's own dtype, else bf16
    output     dtype of results; None: that of x
    kernel     a kernel that every layer must take
    model      the checkpoint's name, for errata of some models; None: the config's `_name_or_path`, else the folder's
    verify     which calls of the layers are held against the reference, as in QuantLinear.from_tensors
    keep_checkpoint  False: weights are held once where a packed copy can stand for them, as there
    strict     False: layers that no scheme covers are listed in `refused` instead of being an error
    errors     CheckpointError naming file or layer, format and what is missing
    """
    folder = Path(model_dir)
    config, quantization = read_config(folder)
    table = table or shipped_table()
    contents = sort_layers(read_entries(folder), quantization, table.schemes)
    if strict and contents.refused:
        raise CheckpointError(refusal_text(folder, contents.refused))
    if not contents.linears and not contents.refused:
        raise CheckpointError(f"{folder}: no quantized linear found; {len(contents.left_alone)} layers are left alone")
    named = config.get("_name_or_path")
    known = model or (named if isinstance(named, str) and named else folder.resolve().name)
    options = {"input": input or _dtype(config), "output": output, "kernel": kernel, "model": known, "verify": verify}
    chosen = {**options, "keep_checkpoint": keep_checkpoint}
    return Checkpoint(folder, contents, table, present_device(device, table), chosen)


def read_config(folder: Path) -> tuple[Json, Quantization]:
    """config.json, and the quantization config that it or hf_quant_config.json holds.

    errors   CheckpointError naming the file
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: wanted a checkpoint folder; found {'a file' if folder.exists() else 'nothing'}"
        )
    config = read_json(folder / "config.json")
    inside = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    holder = next((part for part in inside if part.get("quantization_config") or part.get("compression_config")), None)
    beside = folder / "hf_quant_config.json"
    if holder is None and beside.exists():
        return config, read_quantization(read_json(beside), str(beside))
    return config, read_quantization(holder or config, str(folder / "config.json"))


def sort_layers(entries: Mapping[str, Entry], quantization: Quantization, schemes: Mapping[str, Scheme]) -> Contents:
    """Sort every layer that has a weight, or scales of one: to load, to leave alone, refused.

    entries   tensor name -> its entry, for the whole checkpoint
    """
    linears: dict[str, Found] = {}
    left_alone: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, parts in sorted(_by_layer(entries).items()):
        verdict = quantization.verdict(name)
        signs = _signs(parts)
        form = verdict.format
        if form is None:
            left_alone[name] = verdict.why + (f", although it has {signs}" if signs else "")
        elif not signs and not verdict.expected:
            left_alone[name] = f"not quantized in the files: {_weight_text(parts)}"
        elif isinstance(form, Unsupported):
            refused[name] = f"{form.format}: {form.missing}"
        elif not _has_weight(parts):
            refused[name] = f"{form.scheme}: {signs} without weight; is the download complete?"
        else:
            problem = _missing(form, parts, schemes)
            if problem is None:
                linears[name] = Found(form, parts)
            else:
                refused[name] = f"{form.scheme}: {problem}"
    return Contents(MappingProxyType(linears), MappingProxyType(left_alone), MappingProxyType(refused))


def _by_layer(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """layer name -> its tensors by their last name; only layers that have a weight, or scales that lost theirs.

    Scales of a tensor that is named like the layer itself (experts in one 3-D tensor) are no layer.
    """
    layers: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        layer, _, part = name.rpartition(".")
        if len(name) > LONGEST_NAME:
            raise CheckpointError(f"{entry.file}: a tensor's name has {len(name)} characters; {LONGEST_NAME} at most")
        if part not in BESIDE:
            layers.setdefault(layer, {})[part] = entry
    return {
        layer: parts
        for layer, parts in layers.items()
        if _has_weight(parts) or (_signs(parts) and layer not in entries)
    }


def _has_weight(parts: Mapping[str, Entry]) -> bool:
    """Whether a layer has its weight, as it is or packed."""
    return "weight" in parts or "weight_packed" in parts


def _signs(parts: Mapping[str, Entry]) -> str:
    """What shows that a layer is quantized in the files; "" for a plain layer."""
    signs = [part for part in sorted(parts) if part.startswith(SIGNS)]
    weight = parts.get("weight")
    if weight is not None and weight.dtype not in ("F64", "F32", "F16", "BF16"):
        signs.append(f"a weight in {weight.dtype}")
    return ", ".join(signs)


def _missing(form: GroupFormat, parts: Mapping[str, Entry], schemes: Mapping[str, Scheme]) -> str | None:
    """Why a layer that the config quantizes so cannot be loaded; None when it can."""
    scheme = schemes.get(form.scheme)
    if scheme is None:
        return f"the table has no such scheme; it has {', '.join(sorted(schemes))}"
    known = {"bias"}
    for parameter in scheme.parameters.values():
        spellings = (parameter.name, *parameter.aliases)
        known.update(spellings)
        needed = parameter.required or (parameter.name == "input_scale" and form.input_scaling == "static")
        if needed and not any(spelling in parts for spelling in spellings):
            return f"wanted {' or '.join(spellings)}; found {', '.join(sorted(parts))}"
    strangers = sorted(set(parts) - known)
    if strangers:
        return f"{', '.join(strangers)} has no place in this scheme, which knows {', '.join(sorted(known))}"
    weight = parts["weight"]
    if weight.dtype != "F8_E4M3" or len(weight.shape) != 2:
        return f"weight must be F8_E4M3 [n, k]; found {_weight_text(parts)}"
    return None


def _weight_text(parts: Mapping[str, Entry]) -> str:
    entry = parts.get("weight") or parts["weight_packed"]
    return f"{entry.dtype} {list(entry.shape)}"


def _dtype(config: Json) -> str:
    """The dtype the model computes in, as its config says; bf16 when it says none that a kernel takes."""
    inside = config.get("text_config")
    places = [config, inside] if isinstance(inside, Mapping) else [config]
    said = {str(place[key]) for place in places for key in ("dtype", "torch_dtype") if key in place}
    return next((name for name in ("bf16", "f16", "f32") if FORMATS[name].torch_dtype in said), "bf16")


def refusal_text(folder: Path, refused: Mapping[str, str]) -> str:
    """The first layers that cannot be loaded, each with its reason."""
    first = [f"  {name}: {why}" for name, why in list(refused.items())[:5]]
    more = [f"  and {len(refused) - 5} more"] if len(refused) > 5 else []
    head = f"{folder}: {len(refused)} quantized layers cannot be loaded (strict=False loads the others):"
    return "\n".join([head, *first, *more])
