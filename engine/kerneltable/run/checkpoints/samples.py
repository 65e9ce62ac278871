"""Small quantized checkpoints of each kind, made here from random numbers: no download."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from kerneltable.errors import CheckpointError
from kerneltable.ops.torch_fp8 import round_to_e4m3
from kerneltable.run.checkpoints.sample_library import write_with_library

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """The dimensions of a Qwen3-like model. kv * head_dim is no multiple of 128: the last block of k_proj is short."""

    hidden: int
    intermediate: int
    heads: int
    kv: int
    head_dim: int
    vocabulary: int
    layers: int = 2


SIZES = {
    "small": Size(hidden=256, intermediate=512, heads=6, kv=3, head_dim=64, vocabulary=512),
    "medium": Size(hidden=2048, intermediate=5632, heads=20, kv=5, head_dim=96, vocabulary=4096),
}

LIBRARY_KINDS = {
    "ct-channel": "FP8_DYNAMIC",
    "ct-tensor": "FP8",
    "ct-block": "FP8_BLOCK",
    "ct-w8a16": "FP8_WEIGHT_ONLY",
    "ct-mxfp8": "MXFP8",
}
"""Kinds that the compressed-tensors library writes -> its preset (FP8_WEIGHT_ONLY: FP8_DYNAMIC without inputs)."""

KINDS = ("hf-fp8-block", "hf-fp8-block-e8m0", "hf-fp8-tensor", *LIBRARY_KINDS)

BLOCK = 128
INPUT_AMAX = 6.0
"""The largest input that static scales provide for; inputs of `kerneltable run` are standard normal."""


def write_sample(kind: str, folder: Path, size: str = "small", seed: int = 0) -> None:
    """Write config.json and safetensors of a random Qwen3-like model, its linears quantized in the way of this kind.

    kind     one of KINDS; "ct-..." are written by the compressed-tensors library
    size     one of SIZES
    errors   CheckpointError for another kind or size; ImportError when the library that a kind needs is not installed
    """
    if kind not in KINDS or size not in SIZES:
        raise CheckpointError(
            f"sample: wanted a kind of {', '.join(KINDS)} and a size of {', '.join(SIZES)}; "
            f"found '{kind[:80]}', '{size[:80]}'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = random_model(SIZES[size], seed)
    if kind in LIBRARY_KINDS:
        write_with_library(LIBRARY_KINDS[kind], folder, config, weights, INPUT_AMAX)
    elif kind == "hf-fp8-tensor":
        _write_hugging_face(folder, config, weights, {"activation_scheme": "static"}, _per_tensor)
    elif kind == "hf-fp8-block":
        extra = {"activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
        _write_hugging_face(folder, config, weights, extra, _per_block)
    else:
        extra = {"activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK], "scale_fmt": "ue8m0"}
        _write_hugging_face(folder, config, weights, extra, _per_block_power_of_two)


def random_model(size: Size, seed: int = 0) -> tuple[dict[str, object], Weights]:
    """config.json and bf16 tensors of a random Qwen3-like model."""
    generator = torch.Generator().manual_seed(seed)
    config: dict[str, object] = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv,
        "head_dim": size.head_dim,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    weights: Weights = {}
    for name, shape in _shapes(size).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            values = torch.randn(shape, generator=generator) * (shape[1] ** -0.5)
            weights[name] = values.to(torch.bfloat16)
    return config, weights


def is_quantized(name: str) -> bool:
    """True for the tensors that a sample quantizes: the projections of the decoder layers."""
    return name.endswith("_proj.weight")


def _shapes(size: Size) -> dict[str, tuple[int, ...]]:
    queries, keys = size.heads * size.head_dim, size.kv * size.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocabulary, size.hidden)}
    for i in range(size.layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (size.hidden,),
            f"{layer}.self_attn.q_proj.weight": (queries, size.hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, size.hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, size.hidden),
            f"{layer}.self_attn.o_proj.weight": (size.hidden, queries),
            f"{layer}.self_attn.q_norm.weight": (size.head_dim,),
            f"{layer}.self_attn.k_norm.weight": (size.head_dim,),
            f"{layer}.post_attention_layernorm.weight": (size.hidden,),
            f"{layer}.mlp.gate_proj.weight": (size.intermediate, size.hidden),
            f"{layer}.mlp.up_proj.weight": (size.intermediate, size.hidden),
            f"{layer}.mlp.down_proj.weight": (size.hidden, size.intermediate),
        }
    shapes |= {"model.norm.weight": (size.hidden,), "lm_head.weight": (size.vocabulary, size.hidden)}
    return shapes


def _write_hugging_face(
    folder: Path,
    config: dict[str, object],
    weights: Weights,
    extra: Mapping[str, object],
    quantize: Callable[..., Weights],
) -> None:
    """Write in the Hugging Face FP8 format, in two shards with an index."""
    tensors: Weights = {}
    for name, weight in weights.items():
        tensors |= quantize(name.removesuffix(".weight"), weight) if is_quantized(name) else {name: weight}
    section = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "modules_to_not_convert": ["lm_head", "model.embed_tokens"],
        **extra,
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": section}, indent=1), encoding="utf-8"
    )
    write_shards(
        folder, [{n: t for n, t in tensors.items() if (".layers.0." in n) is first} for first in (True, False)]
    )


def write_shards(folder: Path, shards: list[Weights]) -> None:
    """Write the shards and the index that says which tensor is where."""
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _per_tensor(name: str, weight: torch.Tensor) -> Weights:
    wide = weight.float()
    scale = wide.abs().amax() / 448
    return {
        f"{name}.weight": round_to_e4m3(wide / scale),
        f"{name}.weight_scale": scale.reshape(()),
        f"{name}.input_scale": torch.tensor(INPUT_AMAX / 448),
    }


def _per_block(name: str, weight: torch.Tensor) -> Weights:
    scale = _block_amax(weight) / 448
    return {f"{name}.weight": _coded(weight, scale), f"{name}.weight_scale_inv": scale}


def _per_block_power_of_two(name: str, weight: torch.Tensor) -> Weights:
    """Scales are the next power of two, kept as e8m0: 2^(code - 127)."""
    fraction, exponent = torch.frexp(_block_amax(weight) / 448)
    exponent = torch.where(fraction > 0.5, exponent, exponent - 1)
    codes = (exponent + 127).to(torch.uint8)
    scale = torch.ldexp(torch.ones_like(fraction), exponent)
    return {f"{name}.weight": _coded(weight, scale), f"{name}.weight_scale_inv": codes.view(torch.float8_e8m0fnu)}


def _block_amax(weight: torch.Tensor) -> torch.Tensor:
    """[ceil(n / 128), ceil(k / 128)] f32: the largest magnitude of each block."""
    n, k = weight.shape
    padded = torch.nn.functional.pad(weight.float().abs(), (0, -k % BLOCK, 0, -n % BLOCK))
    return padded.reshape(-(-n // BLOCK), BLOCK, -(-k // BLOCK), BLOCK).amax(dim=(1, 3))


def _coded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    n, k = weight.shape
    spread = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return round_to_e4m3(weight.float() / spread)
