"""Whole models for comparison: plain transformers models whose weights are the checkpoint's numbers, widened here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kerneltable.ops.torch_dequantize import dequantize_input, quantize_input
from kerneltable.run.linear import QuantLinear

BLOCKS = {"hf-fp8-block": (128, 128), "hf-fp8-block-e8m0": (128, 128), "ct-block": (128, 128), "ct-mxfp8": (1, 32)}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rewrite(folder: Path, target: Path, tensors: dict[str, torch.Tensor] | None = None, **config: object) -> Path:
    """A copy of a checkpoint in one file, with other tensors and with values of config.json set or (None) removed."""
    target.mkdir()
    content = json.loads((folder / "config.json").read_text()) | config
    content = {key: value for key, value in content.items() if value is not None}
    (target / "config.json").write_text(json.dumps(content))
    save_file(tensors_of(folder) if tensors is None else tensors, str(target / "model.safetensors"), {"format": "pt"})
    return target


def numbers(scale: torch.Tensor) -> torch.Tensor:
    """Scales as float64: uint8 holds exponents."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.to(torch.float64) - 127)
    return scale.to(torch.float32).to(torch.float64)


def widened(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """codes times scales in float64, which is exact."""
    wide = numbers(scale)
    if block is not None:
        wide = wide.repeat_interleave(block[0], 0)[: weight.shape[0]].repeat_interleave(block[1], 1)[
            :, : weight.shape[1]
        ]
    return weight.to(torch.float32).to(torch.float64) * wide


def dequantized(folder: Path, kind: str, dtype: torch.dtype) -> torch.nn.Module:
    """The checkpoint's model with plain linears: each weight is what its codes and scales stand for."""
    tensors = tensors_of(folder)
    state = {}
    for name, tensor in tensors.items():
        scale = next((tensors[n] for n in (f"{name}_scale", f"{name}_scale_inv") if n in tensors), None)
        if scale is not None:
            state[name] = widened(tensor, scale, BLOCKS.get(kind)).to(dtype)
        elif "scale" not in name:
            state[name] = tensor.to(dtype)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(state)
    return model.eval()


class QuantizedInput(torch.nn.Module):
    """A plain linear whose input is first quantized as the scheme says; sums in float32."""

    def __init__(self, linear: torch.nn.Linear, layer: QuantLinear) -> None:
        super().__init__()
        self.linear = linear
        self.problem = layer.problem
        self.scale = layer.tensors().get("input_scale")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        quantized = quantize_input(self.problem, rows, self.scale, None)
        wide = dequantize_input(self.problem, quantized, torch.float32)
        return self.linear(wide).to(x.dtype).reshape(*x.shape[:-1], -1)


def scheme_model(folder: Path, kind: str, loaded: torch.nn.Module) -> torch.nn.Module:
    """The dequantized model in float32, its inputs quantized where the scheme quantizes them."""
    model = dequantized(folder, kind, torch.float32)
    for name, layer in quant_linears(loaded).items():
        if layer.problem.input_granularity != "none":
            model.set_submodule(name, QuantizedInput(model.get_submodule(name), layer))
    return model


def quant_linears(model: torch.nn.Module) -> dict[str, QuantLinear]:
    """The layers that kerneltable computes."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
