"""Names, expressions, "Linear" and globs of quantization configs."""

from __future__ import annotations

import time

import pytest

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.patterns import LONGEST, read_globs, read_patterns


def test_an_exact_name_means_that_layer_and_no_other():
    patterns = read_patterns(["model.layers.1.fc"], "config")
    assert patterns.named_by("model.layers.1.fc") == "model.layers.1.fc"
    assert patterns.named_by("model.layers.10.fc") is None
    assert patterns.named_by("model.layers.1.fc.inner") is None


def test_an_expression_is_matched_from_the_start_of_the_name():
    patterns = read_patterns([r"re:.*self_attn\.(q|k)_proj$"], "config")
    assert patterns.named_by("model.layers.0.self_attn.q_proj")
    assert patterns.named_by("model.layers.0.self_attn.v_proj") is None
    assert read_patterns(["re:lm_head"], "config").named_by("model.lm_head") is None


def test_linear_is_the_class_and_names_no_layer():
    patterns = read_patterns(["Linear"], "config")
    assert patterns.all_linear
    assert patterns.named_by("Linear") is None


def test_a_container_is_found_for_what_is_inside_it_only():
    patterns = read_patterns(["model.layers.0.linear_attn"], "config")
    assert patterns.container_of("model.layers.0.linear_attn.out_proj") == "model.layers.0.linear_attn"
    assert patterns.container_of("model.layers.0.linear_attn_2.out_proj") is None
    assert patterns.named_by("model.layers.0.linear_attn.out_proj") is None


@pytest.mark.parametrize("text", ["re:(", "re:[a", "re:*a", "re:(?P<n>a)(?P<n>b)"])
def test_an_expression_that_does_not_compile_is_refused(text):
    with pytest.raises(CheckpointError, match="does not compile"):
        read_patterns([text], "config.json: ignore")


@pytest.mark.parametrize(
    "text",
    ["(a+)+$", "(?:a*)*b", "((a+)b?)+", "(a|aa)+$", "([a-z]+)*x", "(.*a){20}", r"(a)\1", ".*.*.*.*.*.*.*x"],
)
def test_an_expression_that_could_run_for_ever_is_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(CheckpointError, match="for ever"):
        read_patterns([f"re:{text}"], "config.json: ignore")
    assert time.process_time() - start < 1  # the processor's time: a busy machine adds none


@pytest.mark.parametrize(
    "text",
    [
        r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$",
        r"re:.*linear_attn\.(in_proj_qkv|in_proj_z|out_proj)$",
        r"re:[+*]+(ab)c",
        r"re:.*\.layers\.[0-9]+\..*\(x\)+",
        r"re:[]*]+x",
        r"re:[^]*]+x",
    ],
)
def test_flat_expressions_are_taken(text):
    assert read_patterns([text], "config").expressions


def test_a_long_pattern_is_refused_and_one_at_the_limit_is_taken():
    assert read_patterns(["a" * LONGEST], "config").named_by("a" * LONGEST)
    with pytest.raises(CheckpointError, match=f"may have {LONGEST} characters"):
        read_patterns(["a" * (LONGEST + 1)], "config")


@pytest.mark.parametrize("entry", [3, None, ["Linear"], ""])
def test_a_pattern_that_is_no_text_is_refused(entry):
    with pytest.raises(CheckpointError, match="must be text"):
        read_patterns([entry], "config")


@pytest.mark.parametrize(
    ("glob", "layer"),
    [
        ("lm_head", "lm_head"),
        ("lm_head", "model.lm_head"),
        ("model.layers.*.self_attn", "model.layers.11.self_attn.q_proj"),
        ("mlp.gate", "model.layers.0.mlp.gate"),
        ("*lm_head*", "model.lm_head_2"),
        ("model.embed_tokens", "model.embed_tokens"),
    ],
)
def test_a_glob_means_the_module_and_what_is_inside_it(glob, layer):
    assert read_globs([glob], "config").named_by(layer) == glob


@pytest.mark.parametrize(
    ("glob", "layer"),
    [
        ("mlp.gate", "model.layers.0.mlp.gate_proj"),
        ("lm_head", "my_lm_head"),
        ("model.layers.1", "model.layers.10.self_attn.q_proj"),
        ("model.layers.*.self_attn", "model.layers.0.mlp.up_proj"),
        ("model.layers.0.q_proj", "modelxlayersx0xq_proj"),
    ],
)
def test_a_glob_does_not_mean_a_longer_name_or_another_place(glob, layer):
    assert read_globs([glob], "config").named_by(layer) is None


def test_a_glob_with_many_stars_is_refused():
    with pytest.raises(CheckpointError, match="stars"):
        read_globs(["a*b*c*d*e*f*g*h"], "config")
