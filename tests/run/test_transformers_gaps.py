"""kerneltable.transformers.load: checkpoints whose files and config.json are not of one model."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from dequantized_model import quant_linears, rewrite, tensors_of
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen3ForCausalLM

from kerneltable.cli import main
from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.model_loading import load
from kerneltable.run.checkpoints.samples import write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaps") / "m"
    write_sample("hf-fp8-tensor", folder)
    return folder


def without(folder, target, *names: str, **config: object):
    tensors = tensors_of(folder)
    for name in names:
        del tensors[name]
    return rewrite(folder, target, tensors, **config)


def refusal(folder, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu", **options)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# --- Tensors that are missing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_a_tensor_that_the_files_lack_is_named_instead_of_random_numbers(sample, tmp_path, name):
    assert f"{name}: missing in the files" in refusal(without(sample, tmp_path / "m", name))


def test_layers_that_only_the_config_has_are_named(sample, tmp_path):
    text = refusal(rewrite(sample, tmp_path / "m", num_hidden_layers=3, layer_types=None))
    assert "model.layers.2.mlp.up_proj.weight: missing in the files" in text
    assert "number of layers" in text


def test_a_long_list_of_missing_tensors_is_cut_and_counted(sample, tmp_path):
    text = refusal(rewrite(sample, tmp_path / "m", num_hidden_layers=5, layer_types=None))
    assert len(text.splitlines()) == 23
    assert "more" in text.splitlines()[-2]


def test_generate_prints_no_text_of_a_model_with_random_weights(capsys, sample, tmp_path):
    folder = without(sample, tmp_path / "m", "model.embed_tokens.weight")
    assert main(["run", str(folder), "--generate", "Hi", "--tokens", "2", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "model.embed_tokens.weight: missing in the files" in printed.err


def test_either_of_two_tied_tensors_may_be_missing(sample, tmp_path):
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        model = load(without(sample, tmp_path / name, name, tie_word_embeddings=True), device="cpu")
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_both_of_two_tied_tensors_may_not(sample, tmp_path):
    names = ("lm_head.weight", "model.embed_tokens.weight")
    text = refusal(without(sample, tmp_path / "m", *names, tie_word_embeddings=True))
    assert "model.embed_tokens.weight: missing in the files" in text


def test_what_the_class_of_a_model_lets_be_missing_may_be_missing(sample, tmp_path, monkeypatch):
    folder = without(sample, tmp_path / "m", "model.norm.weight")
    monkeypatch.setattr(Qwen3ForCausalLM, "_keys_to_ignore_on_load_missing", [r"model\.norm"])
    assert len(quant_linears(load(folder, device="cpu"))) == 14


def test_a_class_of_the_callers_choice_may_have_a_head_that_the_files_lack(sample):
    model = load(sample, device="cpu", model_class=AutoModelForSequenceClassification)
    assert len(quant_linears(model)) == 14
    assert model.score.weight.shape == (2, 256)


def test_the_base_model_under_another_head_must_be_whole(sample, tmp_path):
    folder = without(sample, tmp_path / "m", "model.norm.weight")
    text = refusal(folder, model_class=AutoModelForSequenceClassification)
    assert "model.norm.weight" in text
    assert "score" not in text
    assert "norm.weight" in refusal(folder, model_class=AutoModel)


def test_a_head_of_the_class_that_the_checkpoint_was_made_from_must_be_there(sample, tmp_path):
    folder = without(sample, tmp_path / "m", "lm_head.weight")
    assert "lm_head.weight" in refusal(folder, model_class=AutoModelForCausalLM)


# --- Values of config.json that transformers cannot use --------------------------------------------------------------


def test_a_tensor_of_another_size_is_named_with_both(sample, tmp_path):
    text = refusal(rewrite(sample, tmp_path / "m", vocab_size=100))
    assert "lm_head.weight: the files have [512, 256], the model's config makes it [100, 256]" in text
    tensors = tensors_of(sample) | {"model.norm.weight": torch.ones(64)}
    assert "model.norm.weight: the files have [64]" in refusal(rewrite(sample, tmp_path / "n", tensors))


def test_a_caller_may_ask_for_random_numbers_where_sizes_differ(sample, tmp_path):
    folder = rewrite(sample, tmp_path / "m", vocab_size=100)
    model = load(folder, device="cpu", ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (100, 256)


def test_a_caller_who_asks_for_the_loading_report_gets_it(sample):
    model, report = load(sample, device="cpu", output_loading_info=True)
    assert len(quant_linears(model)) == 14
    assert report["missing_keys"] == set()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": "two"}, "'two'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"dtype": "float13"}, "float13"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
    ],
)
def test_a_value_that_transformers_cannot_use_is_an_error_with_folder_and_kind(sample, tmp_path, changes, words):
    text = refusal(rewrite(sample, tmp_path / "m", **changes))
    assert "transformers cannot load it" in text
    assert words in text


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_running_out_of_memory_and_interrupts_are_not_blamed_on_the_checkpoint(sample, error):
    class Raises:
        @classmethod
        def from_pretrained(cls, *args: object, **options: object) -> None:
            raise error

    with pytest.raises(type(error)):
        load(sample, device="cpu", model_class=Raises)
