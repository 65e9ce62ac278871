"""Checkpoint directories: what is loaded, what is left alone, and what is refused by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kerneltable.errors import CheckpointError, ProblemError
from kerneltable.run.checkpoints.checkpoint import load_linears
from kerneltable.run.checkpoints.samples import KINDS, LIBRARY_KINDS, SIZES, write_sample, write_shards
from kerneltable.table import load_table

E4M3 = torch.float8_e4m3fn
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FP8_BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture(scope="module")
def table():
    return load_table()


def linear(name: str, n: int = 128, k: int = 256, scale: str = "weight_scale_inv") -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(n, k).to(E4M3), f"{name}.{scale}": torch.ones(-(-n // 128), -(-k // 128))}


def write(folder: Path, tensors: dict[str, torch.Tensor], section: object, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return folder


def load(folder: Path, table, **options):
    return load_linears(folder, table, "cpu", **options)


# --- Samples of every kind ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A function: kind -> a small checkpoint of it, written once."""
    root = tmp_path_factory.mktemp("samples")

    def sample(kind: str) -> Path:
        if kind in LIBRARY_KINDS:
            pytest.importorskip("compressed_tensors")
        if not (root / kind).exists():
            write_sample(kind, root / kind)
        return root / kind

    return sample


WANTED = {
    "hf-fp8-block": ("fp8_block_w8a8", "block", "f32", "block", "dynamic"),
    "hf-fp8-block-e8m0": ("fp8_block_w8a8", "block", "e8m0", "block", "dynamic"),
    "hf-fp8-tensor": ("fp8_w8a8", "tensor", "f32", "tensor", "static"),
    "ct-channel": ("fp8_w8a8", "channel", "bf16", "token", "dynamic"),
    "ct-tensor": ("fp8_w8a8", "tensor", "bf16", "tensor", "static"),
    "ct-block": ("fp8_block_w8a8", "block", "bf16", "block", "dynamic"),
    "ct-w8a16": ("w8a16_fp8", "channel", "bf16", "none", "none"),
    "ct-mxfp8": ("mxfp8", "block", "e8m0", "block", "dynamic"),
}


def test_each_kind_of_sample_has_an_expectation():
    assert set(KINDS) == set(WANTED)


@pytest.mark.parametrize("kind", KINDS)
def test_every_projection_of_a_sample_is_found_with_its_format(samples, table, kind):
    linears = load(samples(kind), table)
    assert set(linears) == {f"model.layers.{i}.{name}" for i in (0, 1) for name in PROJECTIONS}
    problem = linears["model.layers.0.self_attn.k_proj"].problem
    found = (problem.scheme, problem.weight_granularity, problem.weight_scale)
    assert (*found, problem.input_granularity, problem.input_scaling) == WANTED[kind]
    size = SIZES["small"]
    assert (problem.n, problem.k) == (size.kv * size.head_dim, size.hidden)
    assert problem.n % 128 != 0
    assert {"lm_head", "model.embed_tokens"} <= set(linears.left_alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_stands_for_the_model_it_was_made_from(samples, table, kind):
    """Dequantized weights are the random model's, up to the rounding of e4m3 and of the scales."""
    from kerneltable.model import Problem
    from kerneltable.ops.torch_dequantize import dequantize_weight
    from kerneltable.ops.torch_fp8 import widen_scale
    from kerneltable.run.checkpoints.samples import random_model

    name = "model.layers.1.self_attn.k_proj"
    layer = load(samples(kind), table)[name]
    problem: Problem = layer.selection.problem
    wide = dequantize_weight(problem, layer.weight, widen_scale(layer.tensors()["weight_scale"]), torch.float32)
    _, weights = random_model(SIZES["small"])
    original = weights[f"{name}.weight"].float()
    assert bool(((wide - original).abs() <= original.abs() * 2**-3 + original.abs().max() * 2**-9).all())


def test_an_unknown_sample_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="hf-fp8-block"):
        write_sample("gguf", tmp_path)


# --- Lazy, typed, on a device -------------------------------------------------------------------------------------


def test_a_layer_is_read_when_it_is_asked_for(tmp_path, table):
    folder = write(tmp_path / "m", linear("a") | linear("b"), FP8_BLOCK)
    linears = load(folder, table)
    assert list(linears) == ["a", "b"]
    assert len(linears) == 2
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        linears["a"]
    with pytest.raises(KeyError):
        linears["c"]


def test_a_bias_beside_a_weight_is_taken(tmp_path, table):
    linears = load(write(tmp_path / "m", linear("a") | {"a.bias": torch.ones(128)}, FP8_BLOCK), table)
    assert linears["a"].problem.bias


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "float16"}, "f16"),
        ({"dtype": "float32"}, "f32"),
        ({"text_config": {"dtype": "float16"}}, "f16"),
        ({}, "bf16"),
        ({"torch_dtype": "auto"}, "bf16"),
    ],
)
def test_layers_are_bound_for_the_dtype_of_the_config(tmp_path, table, config, dtype):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK, **config)
    assert load(folder, table)["a"].problem.input == dtype
    assert load(folder, table, input="f32")["a"].problem.input == "f32"


def test_a_forced_kernel_is_taken_for_each_layer(tmp_path, table):
    linears = load(write(tmp_path / "m", linear("a"), FP8_BLOCK), table, kernel="reference")
    assert linears["a"].kernel == "reference"


def test_a_device_that_is_not_here_is_an_error_with_the_next_step(tmp_path, table):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    if not torch.cuda.is_available():
        with pytest.raises(ProblemError, match="torch sees no cuda device"):
            load_linears(folder, table, "h200")["a"]
    with pytest.raises(ProblemError, match="h2oo"):
        load_linears(folder, table, "h2oo")


def test_the_quantization_config_may_stand_in_the_text_config(tmp_path, table):
    folder = write(tmp_path / "m", linear("a"), None, text_config={"quantization_config": FP8_BLOCK})
    assert list(load(folder, table)) == ["a"]


def test_a_modelopt_config_may_stand_beside(tmp_path, table):
    tensors = {
        "a.weight": torch.ones(128, 256).to(E4M3),
        "a.weight_scale": torch.tensor(0.5),
        "a.input_scale": torch.tensor(0.01),
        "lm_head.weight": torch.ones(16, 256, dtype=torch.bfloat16),
    }
    folder = write(tmp_path / "m", tensors, None)
    section = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(section))
    linears = load(folder, table)
    assert list(linears) == ["a"]
    assert (linears["a"].problem.weight_granularity, linears["a"].problem.input_scaling) == ("tensor", "static")
    assert "lm_head" in linears.left_alone


# --- Left alone, or refused ---------------------------------------------------------------------------------------


def test_what_is_not_quantized_is_left_alone_with_a_reason(tmp_path, table):
    section = FP8_BLOCK | {"modules_to_not_convert": ["lm_head"]}
    rest = {"lm_head.weight": torch.ones(8, 256), "embed.weight": torch.ones(8, 256), "norm.weight": torch.ones(256)}
    linears = load(write(tmp_path / "m", linear("a") | rest, section), table)
    assert dict(linears.left_alone) == {
        "lm_head": "ignored by 'lm_head'",
        "embed": "not quantized in the files: F32 [8, 256]",
        "norm": "not quantized in the files: F32 [256]",
    }


def test_an_ignored_layer_that_is_quantized_in_the_files_is_left_alone_and_named(tmp_path, table):
    section = FP8_BLOCK | {"modules_to_not_convert": ["b"]}
    linears = load(write(tmp_path / "m", linear("a") | linear("b"), section), table)
    assert list(linears) == ["a"]
    assert "although it has weight_scale_inv, a weight in F8_E4M3" in linears.left_alone["b"]


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale", "input_scale"])
def test_scales_without_their_weight_are_refused_by_name(tmp_path, table, scale):
    folder = write(tmp_path / "m", linear("a") | {f"b.{scale}": torch.ones(1, 2)}, FP8_BLOCK)
    with pytest.raises(CheckpointError, match=rf"b: fp8_block_w8a8: {scale} without weight; is the download complete"):
        load(folder, table)
    linears = load(folder, table, strict=False)
    assert (list(linears), list(linears.refused)) == (["a"], ["b"])


def test_scales_without_a_weight_that_the_config_ignores_or_attention_has_are_left_alone(tmp_path, table):
    """So are those of a tensor that is no layer's weight, as experts in one 3-D tensor have them."""
    attention = {"attn.k_scale": torch.ones(1), "attn.bias": torch.ones(8)}
    experts = {"experts": torch.ones(2, 8, 8).to(E4M3), "experts.weight_scale": torch.ones(2)}
    tensors = linear("a") | {"b.weight_scale": torch.ones(1, 2)} | attention | experts
    linears = load(write(tmp_path / "m", tensors, FP8_BLOCK | {"modules_to_not_convert": ["b"]}), table)
    assert (list(linears), dict(linears.refused)) == (["a"], {})
    assert linears.left_alone["b"] == "ignored by 'b', although it has weight_scale"
    assert {"attn", "experts"}.isdisjoint(linears.left_alone)


def test_weights_that_torch_keeps_under_other_names_are_no_quantized_layers(tmp_path, table):
    """weight_norm has weight_g and weight_v, recurrent layers weight_ih_l0 and weight_hh_l0."""
    audio = {"conv.weight_g": torch.ones(1, 1, 3), "conv.weight_v": torch.ones(4, 4, 3), "conv.bias": torch.ones(4)}
    names = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse")
    recurrent = {f"lstm.{name}": torch.ones(4, 4) for name in names}
    linears = load(write(tmp_path / "m", linear("a") | audio | recurrent, FP8_BLOCK), table)
    assert (list(linears), dict(linears.refused)) == (["a"], {})


def test_a_group_of_a_config_that_quantizes_nothing_leaves_its_layers_alone(tmp_path, table):
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups = {"g": {"targets": ["Linear"], "weights": weights}, "UNQUANTIZED": ["re:.*gate$"], "h": {"targets": ["b"]}}
    section = {"quant_method": "compressed-tensors", "config_groups": groups}
    tensors = {"a.weight": torch.ones(128, 256).to(E4M3), "a.weight_scale": torch.ones(128, 1)}
    tensors |= {f"{name}.weight": torch.ones(8, 256) for name in ("mlp.gate", "b")}
    linears = load(write(tmp_path / "m", tensors, section), table)
    assert list(linears) == ["a"]
    assert dict(linears.left_alone) == {
        "mlp.gate": "config group UNQUANTIZED quantizes nothing",
        "b": "config group h quantizes nothing",
    }


def test_an_fp8_weight_without_a_scale_is_refused_with_what_is_missing(tmp_path, table):
    tensors = linear("a") | {"b.weight": torch.ones(128, 256).to(E4M3)}
    folder = write(tmp_path / "m", tensors, FP8_BLOCK)
    with pytest.raises(
        CheckpointError, match="b: fp8_block_w8a8: wanted weight_scale or weight_scale_inv; found weight"
    ):
        load(folder, table)
    linears = load(folder, table, strict=False)
    assert list(linears) == ["a"]
    assert set(linears.refused) == {"b"}


def test_a_layer_that_the_config_names_must_have_its_scale(tmp_path, table):
    def section(*targets, ignore=()):
        weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
        group = {"targets": list(targets), "weights": weights, "input_activations": None}
        return {"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": list(ignore)}

    channel = {"m.a.weight": torch.ones(128, 256).to(E4M3), "m.a.weight_scale": torch.ones(128, 1)}
    tensors = channel | {"m.b.weight": torch.ones(128, 256, dtype=torch.bfloat16)}
    assert list(load(write(tmp_path / "1", tensors, section("Linear")), table)) == ["m.a"]
    assert list(load(write(tmp_path / "2", tensors, section("re:m.*", ignore=["m"])), table)) == ["m.a"]
    with pytest.raises(CheckpointError, match=r"m\.b: w8a16_fp8: wanted weight_scale"):
        load(write(tmp_path / "3", tensors, section("re:m.*")), table)


def test_a_static_layer_without_its_input_scale_is_refused(tmp_path, table):
    section = {"quant_method": "fp8", "activation_scheme": "static"}
    tensors = {"a.weight": torch.ones(128, 256).to(E4M3), "a.weight_scale": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match="a: fp8_w8a8: wanted input_scale"):
        load(write(tmp_path / "m", tensors, section), table)
    taken = tensors | {"a.activation_scale": torch.tensor(0.01)}
    assert load(write(tmp_path / "m2", taken, section), table)["a"].problem.input_scaling == "static"


@pytest.mark.parametrize(
    ("weights", "tensors", "text"),
    [
        (
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            {"a.weight_packed": torch.ones(8, 8, dtype=torch.uint8), "a.weight_scale": torch.ones(8, 1).to(E4M3)},
            "a: NVFP4: no scheme has NVFP4 weights",
        ),
        (
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
            {"a.weight_packed": torch.ones(8, 8, dtype=torch.int32), "a.weight_scale": torch.ones(8, 1)},
            "a: INT4: no scheme has INT4 weights",
        ),
        (
            {"num_bits": 8, "type": "int", "strategy": "channel"},
            {"a.weight": torch.ones(8, 8, dtype=torch.int8), "a.weight_scale": torch.ones(8, 1)},
            "a: INT8: no scheme has INT8 weights",
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"a.weight": torch.ones(8, 8, dtype=torch.int8), "a.weight_scale": torch.ones(8, 1)},
            r"a: w8a16_fp8: weight must be F8_E4M3 \[n, k\]; found I8 \[8, 8\]",
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"a.weight": torch.ones(2, 8, 8).to(E4M3), "a.weight_scale": torch.ones(2, 8, 1)},
            r"found F8_E4M3 \[2, 8, 8\]",
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"a.weight": torch.ones(8, 8).to(E4M3), "a.weight_scale": torch.ones(8), "a.weight_g_idx": torch.ones(8)},
            "weight_g_idx has no place in this scheme",
        ),
    ],
)
def test_a_layer_that_no_scheme_covers_is_refused_by_format(tmp_path, table, weights, tensors, text):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    section = {"quant_method": "compressed-tensors", "config_groups": {"g": group}}
    with pytest.raises(CheckpointError, match=text):
        load(write(tmp_path / "m", tensors, section), table)


def test_scales_of_the_key_value_cache_are_no_part_of_a_linear(tmp_path, table):
    tensors = linear("a.k_proj") | {"a.k_proj.k_scale": torch.tensor(1.0), "a.k_proj.output_scale": torch.tensor(1.0)}
    assert list(load(write(tmp_path / "m", tensors, FP8_BLOCK), table)) == ["a.k_proj"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"a.weight_scale_inv": torch.ones(2, 1)}, r"a: weight_scale.*\[1, 2\].*found \[2, 1\]"),
        ({"a.weight_scale_inv": torch.zeros(1, 2)}, r"weight_scale\[0, 0\] must be finite and above 0"),
        ({"a.weight_scale": torch.full((1, 2), 2.0)}, "'weight_scale'.*'weight_scale_inv'.*differ"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_naming_folder_and_layer(tmp_path, table, change, text):
    linears = load(write(tmp_path / "m", linear("a") | change, FP8_BLOCK), table)
    with pytest.raises(CheckpointError, match=text) as caught:
        linears["a"]
    assert str(tmp_path / "m") in str(caught.value)


def test_a_checkpoint_without_a_quantized_linear_is_refused(tmp_path, table):
    folder = write(tmp_path / "m", {"a.weight": torch.ones(8, 8)}, FP8_BLOCK)
    with pytest.raises(CheckpointError, match="no quantized linear found; 1 layers are left alone"):
        load(folder, table)


# --- Files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    (folder / "model.safetensors").unlink()
    write_shards(folder, [linear("a"), linear("b")])
    return folder


def test_shards_are_read_through_their_index(sharded, table):
    linears = load(sharded, table)
    assert list(linears) == ["a", "b"]
    assert linears["b"].problem.n == 128


def test_a_layer_may_be_spread_over_two_shards(sharded, table):
    parts = linear("a")
    write_shards(sharded, [{"a.weight": parts["a.weight"]}, {"a.weight_scale_inv": parts["a.weight_scale_inv"]}])
    assert torch.equal(load(sharded, table)["a"].tensors()["weight_scale"], parts["a.weight_scale_inv"])


def test_shards_without_an_index_are_read_too(sharded, table):
    (sharded / "model.safetensors.index.json").unlink()
    assert list(load(sharded, table)) == ["a", "b"]


def test_a_tensor_in_two_shards_without_an_index_is_refused(sharded, table):
    (sharded / "model.safetensors.index.json").unlink()
    save_file(linear("a"), str(sharded / "extra.safetensors"))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors: tensor 'a.weight.*' is in extra"):
        load(sharded, table)


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_shard_is_refused_by_name(sharded, table, number):
    (sharded / f"model-0000{number}-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"model-0000{number}-of-00002.safetensors: wanted a safetensors file"):
        load(sharded, table)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_shard_is_refused_by_name(sharded, table, length):
    file = sharded / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: cannot be read as safetensors"):
        load(sharded, table)


def test_a_shard_without_a_tensor_of_the_index_is_refused(sharded, table):
    file = sharded / "model-00002-of-00002.safetensors"
    tensors = load_file(str(file))
    del tensors["b.weight_scale_inv"]
    save_file(tensors, str(file))
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: tensor 'b\.weight_scale_inv' is missing"):
        load(sharded, table)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "x.bin",
        "a\\b.safetensors",
        "\0.safetensors",
        3,
        None,
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused_and_nothing_is_opened(sharded, table, name):
    save_file(linear("b"), str(sharded.parent / "x.safetensors"))
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["b.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="a shard must be a plain"):
        load(sharded, table)


def test_a_shard_may_be_a_symbolic_link_as_in_a_download_cache(sharded, table):
    file = sharded / "model-00002-of-00002.safetensors"
    blob = sharded.parent / "blob"
    file.rename(blob)
    file.symlink_to(blob)
    assert list(load(sharded, table)) == ["a", "b"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_this_user_may_not_read_is_not_called_missing(tmp_path, table, monkeypatch, name):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    really = Path.open

    def denied(self, *given, **more):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return really(self, *given, **more)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError) as raised:
        load(folder, table)
    assert str(raised.value) == (
        f"{folder / name}: cannot be read: permission denied; give this user the right to read it"
    )


@pytest.mark.parametrize("content", ["{", "", "[1]", "null", '{"a": \x00}', "[" * 100_000, "\ufeff{"])
def test_bad_json_is_refused_naming_the_file(tmp_path, table, content):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (cannot be read as JSON|wanted a JSON object)"):
        load(folder, table)


@pytest.mark.parametrize("content", ["{", '{"weight_map": []}', '{"weight_map": {}}', "{}"])
def test_a_bad_index_is_refused_naming_the_file(sharded, table, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        load(sharded, table)


def test_a_config_that_is_no_utf8_is_refused(tmp_path, table):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load(folder, table)


def test_a_config_with_a_byte_order_mark_is_taken(tmp_path, table):
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert list(load(folder, table)) == ["a"]


def test_a_config_that_is_a_pipe_is_refused(tmp_path, table):
    """Unopened: to open it would wait for a writer, for ever."""
    folder = write(tmp_path / "m", linear("a"), FP8_BLOCK)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        load(folder, table)


def test_a_folder_without_config_tensors_or_itself_is_refused(tmp_path, table):
    with pytest.raises(CheckpointError, match="wanted a checkpoint folder; found nothing"):
        load(tmp_path / "absent", table)
    with pytest.raises(CheckpointError, match=r"config\.json: wanted a file; found nothing"):
        load(tmp_path, table)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": FP8_BLOCK}))
    with pytest.raises(CheckpointError, match="found none of them"):
        load(tmp_path, table)
    with pytest.raises(CheckpointError, match="found a file"):
        load(tmp_path / "config.json", table)


def test_nothing_that_a_config_names_is_imported_or_run(tmp_path, table):
    folder = write(
        tmp_path / "m",
        linear("a"),
        FP8_BLOCK,
        auto_map={"AutoConfig": "evil_configuration.Config", "AutoModel": "evil--repo.Model"},
        model_file="evil_configuration.py",
        trust_remote_code=True,
    )
    (folder / "evil_configuration.py").write_text("raise SystemExit('a config was executed')")
    linears = load(folder, table)
    assert linears["a"].problem.n == 128
    assert not [name for name in sys.modules if "evil" in name]


def test_a_regex_of_many_counts_is_refused(tmp_path, table):
    group = {"targets": ["re:(a{999}){99}"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    section = {"quant_method": "compressed-tensors", "config_groups": {"g": group}}
    with pytest.raises(CheckpointError, match=r"config_groups\.g: expression .*repeats parts 999 x 99 times"):
        load(write(tmp_path / "m", linear("a" * 200), section), table)
