"""Real quantization configs: each maps to its scheme, or is refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.group_format import GroupFormat, Unsupported, group_format, preset
from kerneltable.run.checkpoints.quantization_config import read_quantization

DATA = Path(__file__).parents[1] / "data"
BLOCK = GroupFormat("fp8_block_w8a8", "block", (128, 128), "block", "dynamic")


def read(file: str):
    return read_quantization(json.loads((DATA / "quantization_configs" / file).read_text()), file)


def test_every_real_config_is_tested_here():
    files = {entry["file"] for entry in json.loads((DATA / "quantization_configs" / "INDEX.json").read_text())}
    assert files == {file for file, _, _ in COVERED} | {file for file, _ in REFUSED} | {"ct_mixed_fast.quant.json"} | {
        "ct_nvfp4_dense.quant.json"
    }


COVERED = [
    ("deepseek_v3.config.json", "model.layers.3.mlp.experts.0.up_proj", BLOCK),
    ("deepseek_v4_flash.quant.json", "layers.0.attn.wq_b", BLOCK),
    ("qwen3_6_35b_a3b_fp8.quant.json", "model.language_model.layers.0.mlp.experts.0.up_proj", BLOCK),
    (
        "llama31_8b_fp8_naive.quant.json",
        "model.layers.0.self_attn.q_proj",
        GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static"),
    ),
    ("w8a16_fp8_channel.quant.json", "layers.0.mlp.up_proj", GroupFormat("w8a16_fp8", "channel", None, None, None)),
    (
        "fp8_tensor_w_token_a.quant.json",
        "layers.0.feed_forward.w1",
        GroupFormat("fp8_w8a8", "tensor", None, "token", "dynamic"),
    ),
    (
        "hy4_mxfp8_modelopt.quant.json",
        "model.layers.0.mlp.up_proj",
        GroupFormat("mxfp8", "block", None, "block", "dynamic"),
    ),
    (
        "modelopt_fp8.hf_quant_config.json",
        "model.layers.0.mlp.up_proj",
        GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static"),
    ),
]
REFUSED = [("gpt_oss_mxfp4.quant.json", "quant_method 'mxfp4'")]


@pytest.mark.parametrize(("file", "layer", "wanted"), COVERED)
def test_a_real_config_maps_to_its_scheme(file, layer, wanted):
    assert read(file).verdict(layer).format == wanted


@pytest.mark.parametrize(("file", "text"), REFUSED)
def test_a_method_without_a_scheme_is_refused_by_name(file, text):
    with pytest.raises(CheckpointError, match=text):
        read(file)


def test_nvfp4_layers_are_refused_by_name_and_the_head_is_left_alone():
    quantization = read("ct_nvfp4_dense.quant.json")
    form = quantization.verdict("model.layers.0.mlp.up_proj").format
    assert isinstance(form, Unsupported)
    assert form.format == "NVFP4"
    assert quantization.verdict("lm_head").format is None


def test_a_mixed_config_gives_each_layer_its_own_group():
    quantization = read("ct_mixed_fast.quant.json")
    attention = quantization.verdict("model.language_model.layers.1.self_attn.q_proj")
    assert attention.format == GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic")
    assert attention.expected
    expert = quantization.verdict("model.language_model.layers.1.mlp.experts.17.gate_proj").format
    assert isinstance(expert, Unsupported)
    assert expert.format == "NVFP4"
    assert quantization.verdict("model.language_model.layers.1.mlp.gate").format is None


def test_an_ignored_container_does_not_swallow_children_that_a_group_targets():
    quantization = read("ct_mixed_fast.quant.json")
    child = quantization.verdict("model.language_model.layers.0.linear_attn.out_proj")
    assert child.format == GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic")
    assert not child.expected
    assert quantization.verdict("model.language_model.layers.0.linear_attn.in_proj_a").format is None


@pytest.mark.parametrize(
    "layer",
    ["lm_head", "model.language_model.layers.0.mlp.gate", "model.language_model.layers.0.linear_attn.in_proj_a"],
)
def test_modules_not_converted_are_left_alone(layer):
    verdict = read("qwen3_6_35b_a3b_fp8.quant.json").verdict(layer)
    assert verdict.format is None
    assert "ignored by" in verdict.why


def test_a_layer_beside_a_module_not_converted_is_quantized():
    assert read("qwen3_6_35b_a3b_fp8.quant.json").verdict("model.language_model.layers.0.mlp.gate_proj").format == BLOCK


def test_ignored_expressions_beat_the_class_target():
    quantization = read("w8a16_fp8_channel.quant.json")
    assert quantization.verdict("layers.0.self_attn.q_proj").format is None
    assert quantization.verdict("layers.0.fc").format is None
    assert quantization.verdict("layers.0.fc1").format is not None


def test_auto_map_is_data_and_imports_nothing():
    before = set(sys.modules)
    read("deepseek_v3.config.json")
    assert not [name for name in set(sys.modules) - before if "deepseek" in name or "transformers" in name]


# --- The library's presets ----------------------------------------------------------------------------------------

PRESETS = json.loads((DATA / "compressed_tensors_presets.json").read_text())
OURS = {
    "FP8": GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static"),
    "FP8_DYNAMIC": GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic"),
    "FP8_BLOCK": BLOCK,
    "MXFP8": GroupFormat("mxfp8", "block", None, "block", "dynamic"),
    "MXFP8A16": GroupFormat("mxfp8", "block", None, "none", None),
}
NAMES = {"INT8": "INT8", "MXFP4": "MXFP4", "MXFP6A16": "MXFP6", "NVFP4A16": "NVFP4", "W4AFP8": "INT4", "W2A16": "INT2"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_of_the_library_maps_to_a_scheme_quantizes_nothing_or_is_refused_by_name(name):
    form = group_format(PRESETS[name], None, name)
    if name == "UNQUANTIZED":
        assert form is None
        assert preset(name) is None
    elif name in OURS:
        assert form == OURS[name] == preset(name)
    else:
        assert isinstance(form, Unsupported)
        assert NAMES.get(name, form.format) == form.format
        assert isinstance(preset(name), Unsupported)


def group(**changes):
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True} | changes.pop("weights", {})
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True} | changes.pop("inputs", {})
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs} | changes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weights": {"symmetric": False}}, "asymmetric"),
        ({"inputs": {"type": "int"}}, "INT8 inputs"),
        ({"inputs": {"dynamic": False}}, "static inputs per token"),
        ({"inputs": {"dynamic": "local"}}, "local inputs"),
        (
            {"weights": {"strategy": "block", "block_structure": [128, 128]}},
            "block of 128x128 with dynamic inputs per token",
        ),
        ({"weights": {"strategy": "attn_head"}}, "per attn_head"),
        ({"output_activations": {"num_bits": 8}}, "quantized outputs"),
    ],
)
def test_a_group_that_no_scheme_covers_is_refused_by_name(changes, text):
    form = group_format(group(**changes), "float-quantized", "config")
    assert isinstance(form, Unsupported)
    assert text in form.format


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("input_activations",), "inputs only"),
        (("output_activations",), "outputs only"),
        (("input_activations", "output_activations"), "inputs and outputs only"),
    ],
)
def test_a_group_that_quantizes_all_but_weights_is_refused_by_name(parts, name):
    arguments = {"num_bits": 8, "type": "float", "dynamic": True}
    form = group_format({"weights": None} | dict.fromkeys(parts, arguments), None, "config")
    assert isinstance(form, Unsupported)
    assert form.format == name


@pytest.mark.parametrize("nothing", [{}, {"weights": None, "input_activations": None, "output_activations": None}])
def test_a_group_without_weights_inputs_and_outputs_leaves_its_layers_alone(nothing):
    groups = {"a": PRESETS["FP8"], "plain": {"targets": ["re:.*gate$"]} | nothing}
    quantization = read_quantization(compressed(config_groups=groups), "config")
    verdict = quantization.verdict("m.gate")
    assert verdict.format is None
    assert "config group plain quantizes nothing" in verdict.why
    assert quantization.verdict("m.up").format == OURS["FP8"]


def test_the_preset_of_a_group_that_quantizes_nothing_leaves_its_layers_alone():
    groups = {"FP8": ["Linear"], "unquantized": ["re:.*gate$"]}
    quantization = read_quantization(compressed(config_groups=groups), "config")
    assert quantization.verdict("m.gate").format is None
    assert quantization.verdict("m.up").format == OURS["FP8"]


def test_a_layer_that_one_group_quantizes_and_another_leaves_alone_alike_is_refused():
    groups = {"a": PRESETS["FP8"] | {"targets": ["re:m.*"]}, "b": {"targets": ["re:.*x"]}}
    form = read_quantization(compressed(config_groups=groups), "config").verdict("m.x").format
    assert isinstance(form, Unsupported)
    assert form.format == "ambiguous"


@pytest.mark.parametrize("stored", ["pack-quantized", "nvfp4-pack-quantized", "dense", "marlin-24", 3])
def test_weights_stored_in_another_way_are_refused_by_name(stored):
    form = group_format(group(), stored, "config")
    assert isinstance(form, Unsupported)
    assert str(stored) in form.missing


def test_a_group_of_columns_is_a_block_of_one_row():
    weights = {"strategy": "group", "group_size": 128}
    assert group_format(
        group(weights=weights, inputs={"strategy": "group", "group_size": 128}), None, "c"
    ) == GroupFormat("fp8_block_w8a8", "block", (1, 128), "block", "dynamic")


def test_a_block_may_be_written_as_text():
    weights = {"strategy": "block", "block_structure": "128x128"}
    inputs = {"strategy": "group", "group_size": 128}
    assert group_format(group(weights=weights, inputs=inputs), None, "c") == BLOCK


@pytest.mark.parametrize(
    "weights",
    [
        {"block_structure": "128"},
        {"block_structure": [0, 128]},
        {"num_bits": "8"},
        {"group_size": 1 << 40},
        {"num_bits": True},
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(weights):
    with pytest.raises(CheckpointError, match="wanted"):
        group_format(group(weights=weights), None, "config")


def compressed(**changes):
    return {
        "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": group()}} | changes
    }


def test_an_exact_name_beats_an_expression_and_an_expression_beats_the_class():
    mx = PRESETS["MXFP8"]
    groups = {
        "a": PRESETS["FP8"] | {"targets": ["Linear"]},
        "b": PRESETS["FP8_DYNAMIC"] | {"targets": ["re:model.*"]},
        "c": mx | {"targets": ["model.x"]},
    }
    quantization = read_quantization(compressed(config_groups=groups), "config")
    asked = [quantization.verdict(name).format for name in ("model.x", "model.y", "other")]
    assert asked == [OURS["MXFP8"], OURS["FP8_DYNAMIC"], OURS["FP8"]]


def test_two_groups_that_target_a_layer_alike_and_differ_are_refused():
    groups = {"a": PRESETS["FP8"] | {"targets": ["re:m.*"]}, "b": PRESETS["MXFP8"] | {"targets": ["re:.*x"]}}
    form = read_quantization(compressed(config_groups=groups), "config").verdict("m.x").format
    assert isinstance(form, Unsupported)
    assert form.format == "ambiguous"
    assert "a, b" in form.missing


def test_two_groups_of_one_format_may_target_a_layer_alike():
    groups = {"a": PRESETS["FP8"] | {"targets": ["re:m.*"]}, "b": PRESETS["FP8"] | {"targets": ["re:.*x"]}}
    assert read_quantization(compressed(config_groups=groups), "config").verdict("m.x").format == OURS["FP8"]


def test_a_group_may_be_a_preset_with_a_list_of_targets():
    quantization = read_quantization(compressed(config_groups={"FP8_DYNAMIC": ["Linear"]}), "config")
    assert quantization.verdict("x").format == OURS["FP8_DYNAMIC"]


@pytest.mark.parametrize("key", ["sparsity_config", "transform_config"])
def test_what_changes_the_product_is_refused_and_empty_sections_are_not(key):
    read_quantization(compressed(**{key: {}}), "config")
    content = {"format": "sparse-24-bitmask"} if key == "sparsity_config" else {"config_groups": {"u": {}}}
    with pytest.raises(CheckpointError, match=key):
        read_quantization(compressed(**{key: content}), "config")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (None, "none; is the model quantized"),
        ([], "none; is the model quantized"),
        ({"quant_method": "gptq"}, "quant_method 'gptq'"),
        ({"quant_method": "awq"}, "quant_method 'awq'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'fmt' must be 'e4m3'"),
        ({"quant_method": "fp8", "activation_scheme": "later"}, "activation_scheme"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive integers"),
        ({"quant_method": "fp8", "weight_block_size": [128, "128"]}, "two positive integers"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"}, "static"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "must be a list"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "config_groups.a"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": "Linear"}}},
            "'targets' must be a list",
        ),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "'NVFP4'"),
        ({"quant_method": "modelopt", "quantization": 3}, "'quantization' must be an object"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_with_its_reason(section, text):
    with pytest.raises(CheckpointError, match=text):
        read_quantization({"quantization_config": section}, "config.json")


def test_fp8_without_a_block_is_per_tensor_with_tokens_or_static():
    def form(scheme):
        section = {"quant_method": "fp8", "activation_scheme": scheme}
        return read_quantization({"quantization_config": section}, "c").verdict("x").format

    assert form("dynamic") == GroupFormat("fp8_w8a8", "tensor", None, "token", "dynamic")
    assert form("static") == GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static")


# --- Every value of every real config replaced by a wrong one -----------------------------------------------------

ODD = (None, True, -1, 3, float("nan"), "x", "re:(", "", [], [3], [[]], {}, {"a": 1}, "a" * 2000)


def places(node, path=()):
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(node, path, value):
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("file", sorted(p.name for p in (DATA / "quantization_configs").glob("*.*.json")))
def test_a_wrong_value_anywhere_gives_an_answer_or_a_checkpoint_error(file):
    config = json.loads((DATA / "quantization_configs" / file).read_text())
    refusals = []
    for path in places(config):
        for value in ODD:
            changed = replaced(config, path, value)
            if not isinstance(changed, dict):
                continue
            try:
                verdict = read_quantization(changed, "config.json").verdict("model.layers.0.mlp.up_proj")
            except CheckpointError as error:
                refusals.append(str(error))
            else:
                assert verdict.format is None or isinstance(verdict.format, GroupFormat | Unsupported)
    assert refusals
    assert all("config.json" in text and len(text) < 2000 for text in refusals)
