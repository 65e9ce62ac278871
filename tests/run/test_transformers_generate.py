"""`kerneltable run --generate`: a whole model continues a text."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("transformers")

import torch
from dequantized_model import rewrite
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kerneltable.cli import main
from kerneltable.errors import CheckpointError, KernelFault
from kerneltable.run.checkpoints.generation import generate, read_tokenizer
from kerneltable.run.checkpoints.model_loading import load
from kerneltable.run.checkpoints.samples import write_sample
from kerneltable.run.ledger import shared_ledger


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "m"
    write_sample("hf-fp8-block", folder)
    return folder


def answer(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["run", *arguments, "--device", "cpu", "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_answer_is_the_models_own_greedy_continuation(capsys, sample):
    code, found = answer(capsys, str(sample), "--generate", "Hello", "--tokens", "5", "--force", "reference")
    assert code == 0
    (one,) = found["generated"]
    assert one["prompt_ids"] == list(b"Hello")
    ids = torch.tensor([one["prompt_ids"]])
    model = load(sample, device="cpu", kernel="reference")
    with torch.no_grad():
        for token in one["ids"]:
            assert int(model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(one["ids"]) == 5
    assert one["tokens_per_second"] > 0
    assert one["kernels"] == {"reference": 14}


def test_every_call_is_checked_on_request(capsys, sample):
    counts = []
    for mode in ("always", "never"):
        shared_ledger().forget()
        before = sum(shared_ledger().report().checked.values())
        assert main(["run", str(sample), "--generate", "Hi", "--tokens", "2", "--device", "cpu", "--verify", mode]) == 0
        counts.append(sum(shared_ledger().report().checked.values()) - before)
    assert counts[0] > 14
    assert counts[1] == 0
    capsys.readouterr()


def test_the_text_says_how_fast_by_which_kernels_and_that_bytes_are_the_ids(capsys, sample):
    assert main(["run", str(sample), "--generate", "Hello", "--tokens", "3", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    for words in ("Hello", "3 tokens in", "tokens/s", "no tokenizer", "kernels: ", " 14"):
        assert words in printed.out
    assert "Loading weights" not in printed.err


def test_a_sample_can_be_made_and_continued(capsys):
    code, found = answer(capsys, "--sample", "hf-fp8-tensor", "--generate", "Hi", "--tokens", "2")
    assert code == 0
    assert found["generated"][0]["checkpoint"] == "hf-fp8-tensor"


def test_a_tokenizer_of_the_checkpoint_is_used(capsys, sample, tmp_path):
    folder = rewrite(sample, tmp_path / "m")
    words = {"[UNK]": 0, "hello": 7, "world": 9} | {f"w{i}": i for i in range(10, 512)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    code, found = answer(capsys, str(folder), "--generate", "hello world", "--tokens", "2")
    assert code == 0
    assert found["generated"][0]["prompt_ids"] == [7, 9]
    assert "bytes" not in found["generated"][0]["tokenizer"]


def test_bytes_become_text_again_and_other_ids_show_as_numbers(tmp_path):
    tokenizer = read_tokenizer(tmp_path, 512)
    assert tokenizer.decode(tokenizer.encode("grün")) == "grün"
    assert tokenizer.decode([72, 105, 300, 33]) == "Hi<300>!"


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a vocabulary of 255 has no room for bytes"):
        read_tokenizer(tmp_path, 255)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        read_tokenizer(tmp_path, 512)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read: KeyError"):
        read_tokenizer(tmp_path, 512)


def test_what_transformers_raises_while_it_generates_is_an_error_with_the_folder(capsys, sample, tmp_path):
    folder = rewrite(sample, tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    assert main(["run", str(folder), "--device", "cpu", "--generate", "Hello", "--tokens", "2"]) == 2
    printed = capsys.readouterr()
    assert f"{folder}: transformers cannot generate with it: TypeError" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("error", [MemoryError(), KernelFault("kernel x: was wrong"), KeyboardInterrupt()])
def test_errors_of_memory_and_of_kernels_pass_while_text_is_generated(sample, monkeypatch, error):
    model = load(sample, device="cpu")

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(type(error)):
        generate(model, sample, "Hello", 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--generate", ""], "wanted at least one id"),
        (["--generate", ""], "next: give a text"),
        (["--generate", "Hello", "--tokens", "0"], "N must be 1 to"),
        (["--generate", "Hello", "--force", "torch_scaled_mm_block"], "torch_scaled_mm_block"),
    ],
)
def test_what_cannot_be_generated_says_why_and_prints_no_answer(capsys, sample, arguments, words):
    assert main(["run", str(sample), "--device", "cpu", *arguments]) != 0
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_without_transformers_the_next_step_is_named(capsys, sample, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("kerneltable.run.checkpoints.model_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("kerneltable.run.checkpoints.model_loading", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["run", str(sample), "--device", "cpu", "--generate", "Hello"]) == 2
    assert "pip install 'kerneltable[transformers]'" in capsys.readouterr().err
