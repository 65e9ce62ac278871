"""Formats of checkpoints: ModelOpt's algorithms, scale formats, other blocks, joined projections, and shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kerneltable.errors import CheckpointError, LayerError
from kerneltable.model import Problem
from kerneltable.run.checkpoints.checkpoint import load_linears
from kerneltable.run.checkpoints.fused import fuse
from kerneltable.run.checkpoints.group_format import GroupFormat, Unsupported
from kerneltable.run.checkpoints.partition import shard
from kerneltable.run.checkpoints.quantization_config import read_quantization
from kerneltable.run.layer import Declared, Layer, read_layer
from kerneltable.run.layer_data import random_layer
from kerneltable.run.linear import QuantLinear
from kerneltable.run.oracle import error_over_bound, reference64
from kerneltable.select import complete, device, select
from kerneltable.table import load_table

TABLE = load_table()


def modelopt(algorithm: str, **more: Any) -> GroupFormat | Unsupported | None:
    section = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm, **more}}
    return read_quantization(section, "hf_quant_config.json").verdict("model.layers.0.mlp.up_proj").format


# --- ModelOpt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "wanted"),
    [
        ("FP8", GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static")),
        ("FP8_PER_CHANNEL_PER_TOKEN", GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic")),
        ("FP8_PER_CHANNEL", GroupFormat("w8a16_fp8", "channel", None, None, None)),
        ("FP8_PB_WO", GroupFormat("w8a16_fp8", "block", (128, 128), None, None)),
        ("MXFP8", GroupFormat("mxfp8", "block", None, "block", "dynamic")),
    ],
)
def test_an_algorithm_of_modelopt_maps_to_its_scheme(algorithm: str, wanted: GroupFormat) -> None:
    assert modelopt(algorithm) == wanted


@pytest.mark.parametrize("algorithm", ["NVFP4", "W4A16_AWQ", "W4A8_AWQ", "INT4_AWQ", "W8A8_SQ_PER_CHANNEL", "fp8", ""])
def test_an_algorithm_without_a_scheme_is_refused_by_name_with_those_that_have_one(algorithm: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        modelopt(algorithm)
    assert f"quant_algo {algorithm!r} is not covered" in str(caught.value)
    assert "FP8_PER_CHANNEL, FP8_PB_WO, MXFP8" in str(caught.value)


def test_mixed_precision_gives_each_layer_its_own_algorithm() -> None:
    layers = {
        "model.a": {"quant_algo": "FP8"},
        "model.b": {"quant_algo": "MXFP8"},
        "model.c": {"quant_algo": "NVFP4", "group_size": 16},
    }
    section = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    quantization = read_quantization(section, "hf_quant_config.json")
    found = {name: quantization.verdict(name).format for name in (*layers, "model.d")}
    assert found["model.a"] == modelopt("FP8")
    assert found["model.b"] == modelopt("MXFP8")
    assert isinstance(found["model.c"], Unsupported)
    assert found["model.c"].format == "NVFP4"
    assert found["model.d"] is None


@pytest.mark.parametrize("layers", [None, [], {}, {"model.a": "FP8"}])
def test_mixed_precision_without_its_layers_is_refused(layers: Any) -> None:
    with pytest.raises(CheckpointError, match="quantized_layers"):
        modelopt("MIXED_PRECISION", quantized_layers=layers)


def test_block_scales_of_modelopt_are_read_in_their_own_shape(tmp_path: Path) -> None:
    problem = complete(TABLE.schemes["w8a16_fp8"], Problem("w8a16_fp8", m=3, n=200, k=256, weight_granularity="block"))
    data = random_layer(problem, torch.Generator().manual_seed(1))
    scale = data.tensors["weight_scale"].reshape(2, 1, 2, 1).clone()
    tensors = {"m.up.weight": data.tensors["weight"].clone(), "m.up.weight_scale": scale}
    save_file(tensors, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8_PB_WO"}}))
    layer = load_linears(tmp_path, device="cpu:x86-64-v3", kernel="reference")["m.up"]
    held(layer, problem, data.tensors, data.x)


def held(layer: QuantLinear, problem: Problem, tensors: Any, x: torch.Tensor, bias: Any = None) -> None:
    """The layer's result is within the bound of the float64 reference of these tensors."""
    out = layer(x)
    ref, magnitude = reference64(problem, tensors, x, bias, True)
    assert error_over_bound(out, ref, magnitude, problem.k, problem.output, "f32") <= 1


# --- Scale formats and blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize("scheme", ["fp8_block_w8a8", "w8a16_fp8"])
@pytest.mark.parametrize("block", [(128, 128), (32, 32), (64, 128)])
@pytest.mark.parametrize("kernel", ["reference", None])
def test_every_stored_scale_of_every_block_is_computed_right(
    scheme: str, scale: str, block: tuple[int, int], kernel: str | None
) -> None:
    asked = Problem(scheme, m=4, n=200, k=288, weight_granularity="block", weight_block=block, weight_scale=scale)
    problem = complete(TABLE.schemes[scheme], asked)
    data = random_layer(problem, torch.Generator().manual_seed(block[0]))
    layer = QuantLinear.from_tensors(
        scheme, data.tensors, weight_granularity="block", weight_block=block, kernel=kernel
    )
    assert layer.problem.weight_scale == scale
    held(layer, problem, data.tensors, data.x)


@pytest.mark.parametrize("name", ["a100", "h200", "b200", "mi300x", "arc-b60", "epyc-genoa"])
@pytest.mark.parametrize("scheme", ["fp8_block_w8a8", "w8a16_fp8"])
def test_blocks_of_32_are_refused_by_kernels_for_128_and_served_by_those_that_can(name: str, scheme: str) -> None:
    there = replace(device(name, TABLE), assume_all=True)
    sizes = {"n": 4096, "k": 4096, "weight_granularity": "block"}
    small, usual = (
        select(TABLE, there, Problem(scheme, **sizes, weight_block=block)) for block in ((32, 32), (128, 128))
    )
    expected = "cpu_fp8" if there.platform == "cpu" else "reference"
    assert small.kernel == expected
    fitting = {c.kernel for c in usual.candidates if not c.refusals} - {"reference", "cpu_fp8"}
    for candidate in small.candidates:
        if candidate.kernel in fitting:
            assert "accepts.weight_block" in {r.predicate for r in candidate.refusals}
            assert any(r.found == "32x32" for r in candidate.refusals)


def test_a_config_with_blocks_of_32_describes_them() -> None:
    section = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    form = read_quantization(section, "config.json").verdict("model.x").format
    assert form == GroupFormat("fp8_block_w8a8", "block", (32, 32), "block", "dynamic")


# --- Joined projections --------------------------------------------------------------------------------------------

SIZES = {"q": 192, "k": 64, "v": 128}
BLOCK = (128, 128)


def projections(
    scheme: str, sizes: dict[str, int] = SIZES, k: int = 256, biased: tuple[str, ...] = (), **details: Any
) -> tuple[dict[str, Layer], dict[str, Any], torch.Tensor]:
    """Layers of one input, each with its own scales: checked, as tensors, and the input."""
    declared = Declared(
        weight_granularity=details.get("weight_granularity"),
        weight_block=details.get("weight_block"),
        input_granularity=details.get("input_granularity"),
        input_scaling=details.get("input_scaling"),
    )
    layers, tensors, x = {}, {}, torch.empty(0)
    for index, (name, n) in enumerate(sizes.items()):
        problem = complete(TABLE.schemes[scheme], Problem(scheme, m=5, n=n, k=k, bias=name in biased, **details))
        data = random_layer(problem, torch.Generator().manual_seed(index))
        given = {key: tensor for key, tensor in data.tensors.items() if key != "input_scale_ub"}
        given["weight_scale"] = scaled(given["weight_scale"], index)
        layers[name] = read_layer(TABLE.schemes[scheme], given, data.bias, declared, name)
        tensors[name] = given
        x = data.x
    return layers, tensors, x


def scaled(scale: torch.Tensor, power: int) -> torch.Tensor:
    """Other scales than the neighbour's: 2^power times as large."""
    return scale if scale.element_size() == 1 else scale * 2.0**power


def bound_layer(form: Any, **more: Any) -> QuantLinear:
    return QuantLinear.from_tensors(
        form.scheme,
        form.tensors,
        form.bias,
        weight_granularity=form.weight_granularity,
        weight_block=form.weight_block,
        kernel="reference",
        **more,
    )


@pytest.mark.parametrize(
    ("scheme", "details", "granularity"),
    [
        ("fp8_w8a8", {"weight_granularity": "tensor"}, "channel"),
        ("fp8_w8a8", {"weight_granularity": "channel"}, "channel"),
        ("w8a16_fp8", {"weight_granularity": "tensor"}, "channel"),
        ("w8a16_fp8", {"weight_granularity": "block", "weight_block": BLOCK}, "block"),
        ("fp8_block_w8a8", {"weight_granularity": "block", "weight_block": BLOCK}, "block"),
        ("mxfp8", {}, "block"),
    ],
)
def test_joined_projections_give_the_numbers_of_the_separate_ones(
    scheme: str, details: dict[str, Any], granularity: str
) -> None:
    layers, tensors, x = projections(scheme, biased=("k",), **details)
    form = fuse(layers)
    assert form.weight_granularity == granularity
    joined = bound_layer(form)(x)
    apart = [
        QuantLinear.from_tensors(scheme, tensors[name], layers[name].bias, kernel="reference", **details)(x)
        for name in layers
    ]
    assert torch.equal(joined, torch.cat(apart, dim=1))


def test_a_shard_that_ends_inside_a_block_makes_smaller_blocks_and_not_other_numbers() -> None:
    layers, _, _ = projections("fp8_block_w8a8", {"gate": 1856, "up": 1856}, weight_granularity="block")
    form = fuse(layers)
    assert form.weight_block == (64, 128)
    assert tuple(form.tensors["weight_scale"].shape) == (58, 2)
    layers, _, _ = projections("fp8_block_w8a8", {"gate": 256, "up": 192}, weight_granularity="block")
    assert fuse(layers).weight_block == (128, 128)


def test_projections_that_share_one_scale_keep_it() -> None:
    layers, tensors, _ = projections("fp8_w8a8", {"gate": 64, "up": 64}, weight_granularity="tensor")
    tensors["up"]["weight_scale"] = tensors["gate"]["weight_scale"].clone()
    both = {name: read_layer(TABLE.schemes["fp8_w8a8"], given, None, None, name) for name, given in tensors.items()}
    assert fuse(both).weight_granularity == "tensor"
    assert fuse(layers).weight_granularity == "channel"


def test_one_maximum_is_taken_only_when_declared_lossy() -> None:
    layers, tensors, x = projections("fp8_w8a8", weight_granularity="tensor")
    form = fuse(layers, lossy=True)
    assert form.weight_granularity == "tensor"
    assert float(form.tensors["weight_scale"]) == max(float(t["weight_scale"]) for t in tensors.values())
    kept, lost = bound_layer(fuse(layers))(x), bound_layer(form)(x)
    assert not torch.equal(kept, lost)
    assert torch.allclose(kept.float(), lost.float(), rtol=0.2, atol=0.2 * float(kept.abs().max()))


def test_input_scales_that_differ_are_refused_unless_declared_lossy() -> None:
    details = {"weight_granularity": "tensor", "input_granularity": "tensor", "input_scaling": "static"}
    layers, tensors, _ = projections("fp8_w8a8", **details)
    assert float(fuse(layers).tensors["input_scale"]) == float(tensors["q"]["input_scale"])
    tensors["v"]["input_scale"] = tensors["v"]["input_scale"] * 2
    other = {name: read_layer(TABLE.schemes["fp8_w8a8"], given, None, None, name) for name, given in tensors.items()}
    with pytest.raises(LayerError, match=r"input_scale differs: 'q' 0.0\d+, .*'v' 0.0\d+; one input .* lossy=True"):
        fuse(other)
    largest = fuse(other, lossy=True).tensors["input_scale"]
    assert float(largest) == float(tensors["v"]["input_scale"])


def test_layers_of_different_kinds_are_not_joined() -> None:
    dense, _, _ = projections("fp8_w8a8", {"a": 64}, weight_granularity="channel")
    wide, _, _ = projections("fp8_w8a8", {"b": 64}, k=128, weight_granularity="channel")
    half, _, _ = projections("w8a16_fp8", {"b": 64}, weight_granularity="channel")
    narrow, _, _ = projections("fp8_w8a8", {"b": 64}, weight_granularity="channel", weight_scale="bf16")
    for other, what in ((wide, "k 256, 'b' 128"), (half, "scheme fp8_w8a8"), (narrow, "weight_scale f32, 'b' bf16")):
        with pytest.raises(LayerError, match=f"'a' has {what}"):
            fuse(dense | other)
    with pytest.raises(LayerError, match="at least one layer"):
        fuse({})
    first, _, _ = projections("fp8_block_w8a8", {"a": 64}, weight_granularity="block")
    second, _, _ = projections("fp8_block_w8a8", {"b": 64}, weight_granularity="block", weight_block=(32, 128))
    with pytest.raises(LayerError, match="different weight blocks"):
        fuse(first | second)


def test_a_bias_of_one_projection_is_joined_with_zeros_of_the_others() -> None:
    layers, _, _ = projections("fp8_w8a8", biased=("k",), weight_granularity="channel")
    bias = fuse(layers).bias
    assert bias is not None
    assert torch.equal(bias[192:256], layers["k"].bias)
    assert not bias[:192].any()
    assert not bias[256:].any()
    assert fuse({"q": layers["q"], "v": layers["v"]}).bias is None


# --- Shards of tensor parallelism ----------------------------------------------------------------------------------

CUTS = [
    ("fp8_w8a8", {"weight_granularity": "tensor"}),
    ("fp8_w8a8", {"weight_granularity": "channel"}),
    ("w8a16_fp8", {"weight_granularity": "block", "weight_block": BLOCK}),
    ("fp8_block_w8a8", {"weight_granularity": "block", "weight_block": BLOCK}),
    ("mxfp8", {}),
]


def one_layer(scheme: str, n: int, k: int, **details: Any) -> tuple[Layer, dict[str, Any], torch.Tensor]:
    layers, tensors, x = projections(scheme, {"x": n}, k, ("x",), **details)
    return layers["x"], tensors["x"], x


@pytest.mark.parametrize(("scheme", "details"), CUTS)
@pytest.mark.parametrize(("n", "ranks"), [(512, 4), (384, 2), (192, 4)])
def test_rows_of_all_ranks_together_are_the_whole_layer(
    scheme: str, details: dict[str, Any], n: int, ranks: int
) -> None:
    layer, tensors, x = one_layer(scheme, n, 256, **details)
    whole = QuantLinear.from_tensors(scheme, tensors, layer.bias, kernel="reference", **details)(x)
    parts = [shard(TABLE.schemes[scheme], layer, "n", rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([bound_layer(part)(x) for part in parts], dim=1), whole)
    assert {part.tensors["weight"].shape for part in parts} == {(n // ranks, 256)}


@pytest.mark.parametrize(("scheme", "details"), CUTS)
def test_columns_of_all_ranks_add_up_to_the_whole_layer(scheme: str, details: dict[str, Any]) -> None:
    layer, tensors, x = one_layer(scheme, 192, 512, **details)
    parts = [shard(TABLE.schemes[scheme], layer, "k", rank, 2) for rank in range(2)]
    assert [part.bias is None for part in parts] == [False, True]
    total = torch.zeros(5, 192, dtype=torch.float64)
    for rank, part in enumerate(parts):
        assert part.tensors["weight"].is_contiguous()
        given = {**part.tensors}
        problem = replace(complete(TABLE.schemes[scheme], layer.problem), k=256, m=5, weight_block=part.weight_block)
        ref, _ = reference64(problem, given, x[:, rank * 256 : (rank + 1) * 256], part.bias, False)
        total += ref
    whole = replace(complete(TABLE.schemes[scheme], layer.problem), m=5)
    ref, magnitude = reference64(whole, tensors, x, layer.bias, False)
    assert ((total - ref).abs() <= 2.0**-40 * magnitude).all()


def test_a_rank_that_begins_inside_a_block_has_smaller_blocks() -> None:
    layer, _, _ = one_layer("fp8_block_w8a8", 192, 256, weight_granularity="block")
    part = shard(TABLE.schemes["fp8_block_w8a8"], layer, "n", 1, 2)
    assert part.weight_block == (32, 128)
    assert tuple(part.tensors["weight_scale"].shape) == (3, 2)


def test_columns_that_cut_a_group_of_inputs_are_refused_and_inputs_of_16_bits_may_be_cut() -> None:
    layer, _, _ = one_layer("fp8_block_w8a8", 128, 384, weight_granularity="block")
    with pytest.raises(LayerError, match="down: columns 0 to 192 cut a group of 128"):
        shard(TABLE.schemes["fp8_block_w8a8"], layer, "k", 0, 2, name="down")
    wide, _, _ = one_layer("w8a16_fp8", 128, 384, weight_granularity="block", weight_block=BLOCK)
    assert shard(TABLE.schemes["w8a16_fp8"], wide, "k", 0, 2).weight_block == (128, 64)
    micro, _, _ = one_layer("mxfp8", 128, 96)
    with pytest.raises(LayerError, match="cut a group of 32"):
        shard(TABLE.schemes["mxfp8"], micro, "k", 0, 2)


@pytest.mark.parametrize(
    ("axis", "rank", "ranks", "text"),
    [
        ("m", 0, 2, "axis must be n or k"),
        ("n", 2, 2, "rank must be from 0 to 1"),
        ("n", 0, 5, "no multiple of 5 ranks"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(axis: str, rank: int, ranks: int, text: str) -> None:
    layer, _, _ = one_layer("fp8_w8a8", 192, 256, weight_granularity="channel")
    with pytest.raises(LayerError, match=text):
        shard(TABLE.schemes["fp8_w8a8"], layer, axis, rank, ranks)


def test_predicates_see_the_sizes_of_the_shard() -> None:
    layer, _, _ = one_layer("fp8_w8a8", 64, 128, weight_granularity="channel")
    there = device("h200", TABLE)
    assert select(TABLE, there, replace(layer.problem, bias=False)).kernel == "hopper_fp8_rowwise"
    part = shard(TABLE.schemes["fp8_w8a8"], layer, "n", 0, 8)
    sharded = QuantLinear.from_tensors("fp8_w8a8", part.tensors, weight_granularity="channel", device=there)
    assert sharded.problem.n == 8
    assert sharded.kernel == "triton_fp8_rowwise"
