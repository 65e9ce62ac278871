"""Linears whose weight a model's own code reads: found in its source, and loaded as plain ones."""

from __future__ import annotations

import ast
import json
import logging

import pytest

pytest.importorskip("transformers")

import torch
import torch.nn.functional as F
from dequantized_model import quant_linears, tensors_of
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kerneltable.run.checkpoints.direct_reads import direct_reads
from kerneltable.run.checkpoints.guards import truth
from kerneltable.run.checkpoints.model_loading import load

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_experts_per_tok": 2,
}
LONGCAT = {
    **LATENT,
    "num_layers": 1,
    "ffn_hidden_size": 256,
    "expert_ffn_hidden_size": 64,
    "head_dim": 32,
    "n_routed_experts": 8,
    "zero_expert_num": 2,
    "moe_topk": 2,
}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
READERS = {
    "longcat_flash": (LONGCAT, {"classifier"}),
    "mamba": ({"state_size": 16}, {"dt_proj"}),
    "rwkv": ({"attention_hidden_size": 128}, {"output", "value"}),
}
"""Architecture -> sizes beside SIZES, and the last names of the linears that its code reads."""

QUIET = {
    "qwen3": {"head_dim": 32},
    "llama": {},
    "gemma3_text": {"head_dim": 32},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 64},
    "mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "falcon_mamba": {"state_size": 16},
    "falcon_h1": {**SSM, "mamba_d_ssm": 256},
    "bamba": {**SSM, "attn_layer_indices": [1]},
    "jamba": {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 16, "n_mamba_heads": 8, "mamba_headdim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gptj": {"n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 16},
}
"""Architectures that name weights at most in branches that they do not take: for training, or where nothing is
quantized."""


def linears_of(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    ]


def written(kind: str, sizes: dict[str, object], folder) -> nn.Module:
    """A random model of this architecture, whose folder holds its linears quantized; it keeps their numbers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | sizes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder)
    tensors = tensors_of(folder)
    for name in linears_of(model):
        weight = model.get_submodule(name).weight.data
        scale = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": scale}
        weight.copy_(codes.float() * scale)
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups = {"g": {"targets": linears_of(model), "weights": weights}}
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps(content))
    return model


# --- Whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READERS)
def test_a_layer_that_the_models_code_reads_is_a_plain_linear_and_the_logits_are_right(kind, tmp_path, caplog):
    sizes, expected = READERS[kind]
    plain = written(kind, sizes, tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path / "m", device="cpu", dtype=torch.float32)
    names = {name for name in linears_of(plain) if name not in quant_linears(model)}
    assert {name.split(".")[-1] for name in names} == expected
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    assert quant_linears(model)
    assert all(name in caplog.text for name in names)
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad():
        wanted, found = plain(ids).logits, model(ids).logits
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_a_model_with_a_widened_layer_is_saved_so_that_it_loads_again(tmp_path):
    written("mamba", READERS["mamba"][0], tmp_path / "m")
    model = load(tmp_path / "m", device="cpu", dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu", dtype=torch.float32)
    assert set(quant_linears(again)) == set(quant_linears(model))
    ids = torch.tensor([[3, 14, 15]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", QUIET)
def test_architectures_that_read_no_weight_at_a_call_keep_all_their_layers(kind):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | QUIET[kind]))
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._is_quantized = True  # as transformers does before layers are bound
    names = linears_of(model)
    assert names
    assert direct_reads(model, names) == {}


# --- What counts as reading ------------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.inner = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
        self.inner[0].add_module("up", nn.Linear(4, 4))
        self.parts = 1
        self.flag = False
        self.body = body


class ReadsInForward(Reader):
    def forward(self, x):
        return F.linear(x, self.gate.weight)


class ReadsInAnotherMethod(Reader):
    @property
    def table(self):
        return self.gate.weight.float()


class ReadsThroughAVariable(Reader):
    def forward(self, x):
        for part in self.inner:
            x = x @ part.up.weight.T
        return x


class ReadsThroughASubscript(Reader):
    def forward(self, x):
        return x @ self.inner[0].up.weight


class CastsToItsDtype(Reader):
    def forward(self, x):
        return self.gate(x.to(self.gate.weight.dtype))


class Calls(Reader):
    def forward(self, x):
        return self.gate(x)


class AsksOnly(Reader):
    def forward(self, x):
        if isinstance(self.gate.weight, torch.Tensor) and self.gate.weight.dtype == torch.float32:
            x = x.to(self.gate.weight.device)
        return self.gate(x).reshape(self.gate.weight.shape[0], -1)


class ReadsInTraining(Reader):
    def forward(self, x):
        if self.training and x is not None:
            return F.linear(x, self.gate.weight)
        return self.gate(x)


class ReadsInABranchNotTaken(Reader):
    def forward(self, x):
        if self.parts > 1 and x.any():
            return F.linear(x, self.gate.weight)
        return F.linear(x, self.gate.weight) if self.flag else self.gate(x)


class ReadsInABranchThatMayBeTaken(Reader):
    def forward(self, x):
        return F.linear(x, self.gate.weight) if x.any() else self.gate(x)


class ReadsToInitialize(Reader):
    def init_weights(self):
        self.gate.weight.data.zero_()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (ReadsInForward, {"gate"}),
        (ReadsInAnotherMethod, {"gate"}),
        (ReadsThroughAVariable, {"inner.0.up"}),
        (ReadsThroughASubscript, {"inner.0.up"}),
        (CastsToItsDtype, {"gate"}),
        (ReadsInABranchThatMayBeTaken, {"gate"}),
        (Calls, set()),
        (AsksOnly, set()),
        (ReadsInTraining, set()),
        (ReadsInABranchNotTaken, set()),
        (ReadsToInitialize, set()),
    ],
)
def test_a_weight_counts_as_read_where_a_call_may_use_it_as_numbers(kind, names):
    model = nn.ModuleDict({"a": kind(None), "b": Calls(None)})
    every = [f"{place}.{name}" for place in "ab" for name in ("gate", "inner.0.0", "inner.0.up")]
    found = direct_reads(model, every)
    assert set(found) == {f"a.{name}" for name in names}
    assert all(method.startswith(f"{kind.__name__}.") for method in found.values())


class WithoutSource(nn.Module):
    exec("def forward(self, x): return self.gate.weight")


def test_a_class_without_source_is_passed_over():
    model = WithoutSource()
    model.gate = nn.Linear(4, 4)
    assert direct_reads(model, ["gate"]) == {}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("self.training", False),
        ("not self.training", True),
        ("self.parts == 1 or x.any()", True),
        ("self.parts != 1 or x.any()", None),
        ("self.parts >= 1 and not self.flag", True),
        ("self.parts > 'a'", None),
        ("0 < self.parts < 2", None),
        ("self.nothing", None),
        ("self.body is None", True),
        ("hasattr(self, 'parts')", True),
        ("hasattr(self.gate, 'parts')", False),
        ("hasattr(x, 'parts')", None),
        ("hasattr(self, x)", None),
        ("self.gate", None),
        ("x", None),
    ],
)
def test_a_condition_is_known_where_plain_attributes_of_the_module_decide_it(condition, holds):
    assert truth(ast.parse(condition, mode="eval").body, Reader(None)) is holds
