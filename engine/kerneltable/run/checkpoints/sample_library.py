"""Sample checkpoints in the compressed-tensors format, written by that library itself (a test dependency)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_with_library(
    preset: str, folder: Path, config: Mapping[str, object], weights: Mapping[str, torch.Tensor], input_amax: float
) -> None:
    """Quantize the linears of a model by a preset of the library, and let the library write config and tensors.

    preset   a preset of the library, or FP8_WEIGHT_ONLY: FP8_DYNAMIC with inputs left alone
    weights  name -> bf16 tensor; 2-D ones are linears, except embeddings
    errors   ImportError when compressed-tensors (with transformers) is not installed
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme

    scheme = preset_name_to_scheme("FP8_DYNAMIC" if preset == "FP8_WEIGHT_ONLY" else preset, ["Linear"])
    if preset == "FP8_WEIGHT_ONLY":
        scheme.input_activations = None
    model = _skeleton(weights)
    with redirect_stderr(io.StringIO()):  # the library draws progress bars
        apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
        for module in model.modules():
            if getattr(module, "quantization_scheme", None) is not None:
                _calibrate(module, input_amax)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    compressor.update_config(str(folder))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _skeleton(weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A tree of modules with these weights at their places."""
    root = torch.nn.Module()
    for name, weight in weights.items():
        *path, leaf = name.removesuffix(".weight").split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, _leaf(leaf, weight))
    return root


def _leaf(name: str, weight: torch.Tensor) -> torch.nn.Module:
    leaf: Any
    if weight.dim() == 1:
        leaf = torch.nn.RMSNorm(weight.shape[0], dtype=weight.dtype)
    elif name == "embed_tokens":
        leaf = torch.nn.Embedding(weight.shape[0], weight.shape[1], dtype=weight.dtype)
    else:
        leaf = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    leaf.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return leaf  # type: ignore[no-any-return]


def _calibrate(module: torch.nn.Module, input_amax: float) -> None:
    """Set weight_scale from the weight's own range by the library's rule, and a static input_scale from input_amax."""
    from compressed_tensors.quantization.utils import calculate_qparams

    target: Any = module
    arguments = target.quantization_scheme.weights
    low, high = _ranges(target.weight.detach(), arguments)
    scale, _ = calculate_qparams(low, high, arguments)
    target.weight_scale.data = scale.reshape(target.weight_scale.shape).to(target.weight_scale.dtype)
    if hasattr(target, "input_scale"):
        target.input_scale.data = torch.full_like(target.input_scale, input_amax / 448)


def _ranges(weight: torch.Tensor, arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(least, largest) value for each scale of the weight."""
    n, k = weight.shape
    if arguments.strategy == "tensor":
        return weight.amin(), weight.amax()
    if arguments.strategy == "channel":
        return weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    if arguments.strategy == "group":
        groups = weight.reshape(n, k // arguments.group_size, arguments.group_size)
        return groups.amin(dim=2), groups.amax(dim=2)
    rows, columns = arguments.block_structure
    padded = torch.nn.functional.pad(weight, (0, -k % columns, 0, -n % rows))
    blocks = padded.reshape(-(-n // rows), rows, -(-k // columns), columns)
    return blocks.amin(dim=(1, 3)), blocks.amax(dim=(1, 3))
