"""kerneltable.transformers: what from_pretrained makes of a quantized checkpoint, and what it refuses by name."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

import torch
from dequantized_model import quant_linears, rewrite, tensors_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, FineGrainedFP8Config, Qwen3ForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

from kerneltable.errors import CheckpointError, KernelInputError, NoKernelError
from kerneltable.run.checkpoints.checkpoint import Found
from kerneltable.run.checkpoints.group_format import GroupFormat
from kerneltable.run.checkpoints.model_layers import Pending
from kerneltable.run.checkpoints.model_loading import load
from kerneltable.run.checkpoints.model_quantizer import METHODS, register, registered, unregister
from kerneltable.run.checkpoints.samples import write_sample
from kerneltable.table import load_table

IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    folder = tmp_path_factory.mktemp("block") / "m"
    write_sample("hf-fp8-block", folder)
    return folder


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "m"
    write_sample("hf-fp8-tensor", folder)
    return folder


@pytest.fixture(autouse=True)
def _registered():
    register()
    yield
    unregister()


def section(folder, **changes):
    return json.loads((folder / "config.json").read_text())["quantization_config"] | changes


# --- What becomes of a checkpoint ----------------------------------------------------------------------------------


def test_from_pretrained_makes_every_quantized_linear_a_quant_linear_and_leaves_lm_head_alone(block):
    model = AutoModelForCausalLM.from_pretrained(block)
    layers = quant_linears(model)
    assert len(layers) == 14
    assert all(name.endswith("_proj") for name in layers)
    assert type(model.lm_head) is torch.nn.Linear
    assert model.dtype == torch.bfloat16
    assert not any(layer.training for layer in layers.values())
    assert torch.isfinite(model(IDS).logits).all()


def test_print_shows_the_kernel_of_each_layer(block):
    model = load(block, device="cpu")
    layers = quant_linears(model)
    assert all(layer.kernel for layer in layers.values())
    lines = [line for line in str(model).splitlines() if "QuantLinear" in line]
    assert len(lines) == 7
    assert all("kernel=" + layers["model.layers.0.mlp.up_proj"].kernel in line for line in lines)


def test_the_base_model_loads_too_although_its_names_lack_the_prefix(block):
    assert set(quant_linears(AutoModel.from_pretrained(block))) >= {"layers.0.mlp.up_proj", "layers.1.self_attn.q_proj"}


def test_load_takes_a_table_a_kernel_and_a_dtype(block, tmp_path):
    override = tmp_path / "reference.yaml"
    override.write_text("override: 1\nroutes:\n  fp8_block_w8a8: {cpu: {require: reference}}\n")
    override.chmod(0o600)
    by_table = load(block, load_table(overrides=[override]), "cpu", dtype=torch.float16)
    assert {layer.kernel for layer in quant_linears(by_table).values()} == {"reference"}
    assert by_table(IDS).logits.dtype == torch.float16
    by_name = load(block, device="cpu", kernel="reference", dtype=torch.float32)
    assert {layer.kernel for layer in quant_linears(by_name).values()} == {"reference"}
    assert {layer.problem.input for layer in quant_linears(by_name).values()} == {"f32"}


def test_biases_of_the_checkpoint_are_added(static, tmp_path):
    tensors = tensors_of(static)
    generator = torch.Generator().manual_seed(5)
    for name in [n for n in tensors if "self_attn" in n and n.endswith("_proj.weight")]:
        bias = torch.randn(tensors[name].shape[0], generator=generator).to(torch.bfloat16)
        tensors[name.replace(".weight", ".bias")] = bias
    folder = rewrite(static, tmp_path / "biased", tensors, attention_bias=True)
    layers = quant_linears(AutoModelForCausalLM.from_pretrained(folder))
    assert {name for name, layer in layers.items() if layer.problem.bias} == {n for n in layers if "self_attn" in n}
    name = "model.layers.1.self_attn.k_proj"
    assert torch.equal(layers[name].bias, tensors[f"{name}.bias"])


def test_tied_embeddings_stay_tied(static, tmp_path):
    tensors = tensors_of(static)
    del tensors["lm_head.weight"]
    model = AutoModelForCausalLM.from_pretrained(rewrite(static, tmp_path / "t", tensors, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(quant_linears(model)) == 14


def test_a_modelopt_checkpoint_loads(static, tmp_path):
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    folder = rewrite(static, tmp_path / "modelopt", quantization_config=quantization)
    assert len(quant_linears(AutoModelForCausalLM.from_pretrained(folder))) == 14


def test_load_reads_a_modelopt_config_that_lies_beside_config_json(static, tmp_path):
    folder = rewrite(static, tmp_path / "beside", quantization_config=None)
    beside = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    assert len(quant_linears(load(folder, device="cpu"))) == 14


def test_a_copy_of_a_model_computes_the_same(block):
    model = AutoModelForCausalLM.from_pretrained(block)
    assert torch.equal(copy.deepcopy(model)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["block", "static"])
def test_save_pretrained_writes_the_checkpoint_back(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    before, after = tensors_of(folder), tensors_of(tmp_path / "saved")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name].float(), tensor.float()), name
    assert section(tmp_path / "saved") == section(folder)


# --- What is refused, by name --------------------------------------------------------------------------------------


def refusal(folder, error: type[Exception] = CheckpointError, **options) -> str:
    with pytest.raises(error) as caught:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    return str(caught.value)


def test_experts_that_the_model_merges_into_3d_tensors_are_refused_by_name(static, tmp_path):
    tensors = {n: t for n, t in tensors_of(static).items() if ".mlp." not in n}
    code = torch.ones(64, 256).to(torch.float8_e4m3fn)
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        tensors[f"{mlp}.gate.weight"] = torch.ones(2, 256, dtype=torch.bfloat16)
        for expert in range(2):
            for part in ("gate_proj", "up_proj", "down_proj"):
                weight = code.T.contiguous() if part == "down_proj" else code.clone()
                name = f"{mlp}.experts.{expert}.{part}"
                tensors |= {f"{name}.weight": weight, f"{name}.weight_scale": torch.tensor(0.5)}
                tensors[f"{name}.input_scale"] = torch.tensor(0.5)
    moe = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 2}
    sizes = {"num_experts_per_tok": 1, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    text = refusal(rewrite(static, tmp_path / "moe", tensors, **moe, **sizes))
    assert "12 quantized layers cannot be loaded" in text
    assert "model.layers.0.mlp.experts.0.down_proj" in text
    assert "experts in 3-D tensors" in text


def test_a_tied_lm_head_that_is_quantized_is_refused(static, tmp_path):
    tensors = tensors_of(static)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    tensors |= {f"lm_head.{part}": torch.tensor(0.5) for part in ("weight_scale", "input_scale")}
    quantization = section(static, modules_to_not_convert=["model.embed_tokens"])
    for tied in (False, True):
        folder = rewrite(
            static, tmp_path / str(tied), tensors, quantization_config=quantization, tie_word_embeddings=tied
        )
        if tied:
            assert "lm_head: fp8_w8a8: 'lm_head' is tied" in refusal(folder)
        else:
            assert "lm_head" in quant_linears(AutoModelForCausalLM.from_pretrained(folder))


def test_a_layer_that_the_config_ignores_but_the_files_quantize_is_refused(static, tmp_path):
    quantization = section(static, modules_to_not_convert=["lm_head", "model.layers.0.mlp.up_proj"])
    text = refusal(rewrite(static, tmp_path / "m", quantization_config=quantization))
    assert "model.layers.0.mlp.up_proj.weight: F8_E4M3 [512, 256]: no quantized linear" in text
    assert "unregister()" in text


def test_a_shape_that_the_config_does_not_make_is_refused(static, tmp_path):
    text = refusal(rewrite(static, tmp_path / "m", intermediate_size=384))
    assert "model.layers.0.mlp.up_proj: fp8_w8a8: the files have [512, 256]" in text
    assert "[384, 256]" in text


@pytest.mark.parametrize(("in_files", "words"), [(True, "the files have one"), (False, "the files have none")])
def test_a_bias_in_the_files_or_in_the_model_alone_is_refused(static, tmp_path, in_files, words):
    tensors = tensors_of(static)
    if in_files:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(384)
    text = refusal(rewrite(static, tmp_path / "m", tensors, attention_bias=not in_files))
    assert f"model.layers.0.self_attn.q_proj: fp8_w8a8: bias: {words}" in text


def test_a_layer_without_its_scale_is_refused(static, tmp_path):
    tensors = tensors_of(static)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    assert "model.layers.1.mlp.up_proj: fp8_w8a8: wanted weight_scale" in refusal(
        rewrite(static, tmp_path / "m", tensors)
    )


def test_a_scale_of_a_wrong_shape_is_refused_and_names_the_layer(static, tmp_path):
    tensors = tensors_of(static)
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = torch.ones(7)
    text = refusal(rewrite(static, tmp_path / "m", tensors))
    assert "model.layers.1.mlp.up_proj" in text
    assert "[7]" in text


def test_a_format_without_a_scheme_is_refused_by_name(static, tmp_path):
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    tensors = tensors_of(static)
    packed = {n.replace("_proj.weight", "_proj.weight_packed"): t for n, t in tensors.items() if "_scale" not in n}
    packed |= {n: t for n, t in tensors.items() if n.endswith("weight_scale")}
    assert "INT4" in refusal(rewrite(static, tmp_path / "m", packed, quantization_config=quantization))


def test_a_dtype_that_no_kernel_takes_is_refused(static):
    assert "found torch.float64" in refusal(static, dtype=torch.float64)


def test_a_state_dict_instead_of_files_is_refused(static):
    config = AutoConfig.from_pretrained(static)
    with pytest.raises(CheckpointError, match="found a state dict"):
        Qwen3ForCausalLM.from_pretrained(None, config=config, state_dict={})


def test_a_forced_kernel_that_refuses_is_an_error(block):
    with pytest.raises(NoKernelError, match="torch_scaled_mm_block: runs_on"):
        load(block, device="cpu", kernel="torch_scaled_mm_block")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "no_such_model"}, "transformers cannot load it"),
        ({"quantization_config": None}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    ],
)
def test_load_names_the_folder_of_a_model_that_it_cannot_load(static, tmp_path, changes, words):
    folder = rewrite(static, tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder, device="cpu")
    assert str(folder) in str(caught.value)


def test_code_that_a_config_names_is_not_run(static, tmp_path):
    folder = rewrite(static, tmp_path / "m", model_type="mine", auto_map={"AutoConfig": "mine.Mine"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError):
        load(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_layer_that_waits_for_its_tensors_cannot_be_called():
    pending = Pending(Found(GroupFormat("fp8_w8a8", "tensor", None, "token", "dynamic"), {}))
    with pytest.raises(KernelInputError, match="not loaded yet"):
        pending(torch.ones(1, 4))


# --- Taking and giving back the place in transformers --------------------------------------------------------------


def test_unregister_gives_transformers_its_own_classes_back():
    unregister()
    before = [dict(AUTO_QUANTIZER_MAPPING), dict(AUTO_QUANTIZATION_CONFIG_MAPPING)]
    assert not registered()
    register()
    register()
    assert registered()
    assert all(AUTO_QUANTIZER_MAPPING[method].__name__ == "KernelTableQuantizer" for method in METHODS)
    unregister()
    assert before == [AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING]


def test_load_leaves_the_registration_as_it_was(block):
    unregister()
    load(block, device="cpu")
    assert not registered()


@pytest.mark.parametrize("asked", [FineGrainedFP8Config(), {"quant_method": "fp8"}], ids=["config", "dict"])
def test_quantizing_on_the_fly_stays_with_transformers(asked):
    quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False)
    assert type(quantizer).__name__ == "FineGrainedFP8HfQuantizer"
    assert isinstance(quantizer.quantization_config, FineGrainedFP8Config)


def test_quantizing_on_the_fly_is_refused_where_transformers_has_nothing_of_that_name():
    with pytest.raises(CheckpointError, match="does not quantize models"):
        AutoHfQuantizer.from_config({"quant_method": "modelopt", "quant_algo": "FP8"}, pre_quantized=False)


def test_importing_the_submodule_registers():
    unregister()
    sys.modules.pop("kerneltable.transformers", None)
    assert importlib.import_module("kerneltable.transformers").registered()


def test_importing_kerneltable_does_not_import_transformers():
    code = (
        "import sys, kerneltable, kerneltable.cli.run, kerneltable.run.checkpoints.checkpoint, kerneltable.run.linear; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=120)
