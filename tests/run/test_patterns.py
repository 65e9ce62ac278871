"""Names, expressions, "Linear" and globs of quantization configs."""

from __future__ import annotations

import re
import time

import pytest

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints import patterns
from kerneltable.run.checkpoints.patterns import LONGEST, read_globs, read_patterns


def test_an_exact_name_means_that_layer_and_no_other():
    found = read_patterns(["model.layers.1.fc"], "config")
    assert found.named_by("model.layers.1.fc") == "model.layers.1.fc"
    assert found.named_by("model.layers.10.fc") is None
    assert found.named_by("model.layers.1.fc.inner") is None


def test_an_expression_is_matched_from_the_start_of_the_name():
    found = read_patterns([r"re:.*self_attn\.(q|k)_proj$"], "config")
    assert found.named_by("model.layers.0.self_attn.q_proj")
    assert found.named_by("model.layers.0.self_attn.v_proj") is None
    assert read_patterns(["re:lm_head"], "config").named_by("model.lm_head") is None


def test_linear_is_the_class_and_names_no_layer():
    found = read_patterns(["Linear"], "config")
    assert found.all_linear
    assert found.named_by("Linear") is None


def test_a_container_is_found_for_what_is_inside_it_only():
    found = read_patterns(["model.layers.0.linear_attn"], "config")
    assert found.container_of("model.layers.0.linear_attn.out_proj") == "model.layers.0.linear_attn"
    assert found.container_of("model.layers.0.linear_attn_2.out_proj") is None
    assert found.named_by("model.layers.0.linear_attn.out_proj") is None


@pytest.mark.parametrize("text", ["re:(", "re:[a", "re:*a", "re:(?P<n>a)(?P<n>b)"])
def test_an_expression_that_does_not_compile_is_refused(text):
    with pytest.raises(CheckpointError, match="does not compile"):
        read_patterns([text], "config.json: ignore")


def ask_all(asked, names):
    for name in names:
        asked.named_by(name)


@pytest.mark.parametrize("text", ["(a|aa)+$", "(?:a|aa){60}x", "((a|aa|aaa)*c?)*$"])
def test_a_pattern_that_would_run_for_ever_is_stopped_and_named(text, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    asked = read_patterns([f"re:{text}"], "config.json: ignore")
    start = time.process_time()
    with pytest.raises(
        CheckpointError, match=rf"config\.json: ignore: {re.escape(repr(f're:{text}'))}.*after 0.2 s not"
    ):
        ask_all(asked, ["a" * 400 + "!"])
    assert time.process_time() - start < 1  # the processor's time: a busy machine adds none


@pytest.mark.parametrize("text", ["*a*a*a*a*a*a*a*a*b", "re:.*a.*a.*a.*a.*a.*b", "re:(a+)+$", "re:(a?){30}a{30}"])
def test_a_pattern_that_takes_long_elsewhere_is_done(text):
    asked = read_globs([text], "config.json: ignore")
    start = time.process_time()
    ask_all(asked, ["a" * LONGEST, "a" * 400 + "!", "a" * 30])
    assert time.process_time() - start < 1


def test_the_limit_of_time_is_one_for_all_layers(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    asked = read_patterns([r"re:(?:a|aa)+x"], "config")
    start = time.process_time()
    with pytest.raises(CheckpointError, match="too slowly"):
        ask_all(asked, ["a" * 20] * 10**6)
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize("text", ["(?:(?:(?:a{100}){100}){100}){10}", "(?:a{1,1000}){1,11}"])
def test_counts_that_multiply_are_refused_before_they_are_written_out(text):
    with pytest.raises(CheckpointError, match=r"repeats parts .* times; at most 10000 are taken"):
        read_patterns([f"re:{text}"], "config")


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


def test_a_glob_may_have_many_stars():
    assert read_globs(["a*b*c*d*e*f*g*h"], "config").named_by("abcd.x.efgh.inner")
