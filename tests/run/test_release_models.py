"""Whole checkpoints whose weights are held once: load_linears, a transformers model, and the command line."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from kerneltable.cli import main
from kerneltable.run.checkpoints.checkpoint import load_linears
from kerneltable.run.checkpoints.samples import write_sample
from kerneltable.run.checkpoints.shards import read_entries, read_tensors
from kerneltable.table import load_table
from run.packing_stand_ins import TILES, packing, same_bytes


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "m"
    write_sample("hf-fp8-block", folder)
    return folder


@pytest.fixture
def tiles(tmp_path):
    file = tmp_path / "tiles.yaml"
    file.write_text(TILES)
    file.chmod(0o600)
    return file


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    return packing(monkeypatch)


def released(layer) -> bool:
    return layer._buffers["weight"] is None


def test_the_layers_of_a_folder_are_released_on_request_only(sample, tiles):
    table, files = load_table(overrides=[tiles]), read_tensors(read_entries(sample))
    for keeps in (True, False):
        layers = load_linears(sample, table, "cpu", keep_checkpoint=keeps)
        name, layer = next(iter(layers.items()))
        assert released(layer) is not keeps
        for part, tensor in layer.state_dict().items():
            assert same_bytes(tensor, files[f"{name}.{part}"])


def weights_in_memory() -> set[int]:
    """Where the matrices of codes lie that objects of this process hold, some through views of them."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    codes = [tensor for tensor in tensors if tensor.dtype == torch.float8_e4m3fn and tensor.dim() == 2]
    return {tensor.untyped_storage().data_ptr() for tensor in codes if tensor.device.type == "cpu"}


def test_a_transformers_model_holds_its_weights_once_and_saves_them_all(sample, tiles, tmp_path):
    pytest.importorskip("transformers")
    from kerneltable.run.checkpoints.generation import memory_of
    from kerneltable.run.checkpoints.model_loading import load
    from kerneltable.run.linear import QuantLinear

    table, others = load_table(overrides=[tiles]), len(weights_in_memory())
    model = load(sample, table, "cpu", keep_checkpoint=False)
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert len(layers) == 14
    assert all(map(released, layers))
    assert len(weights_in_memory()) == others
    kept = load(sample, table, "cpu")
    assert len(weights_in_memory()) == others + 14
    assert memory_of(kept)[1] == memory_of(model)[1]
    sizes = sum(layer.problem.n * layer.problem.k for layer in layers)
    assert memory_of(kept)[0] - memory_of(model)[0] == sizes
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, kept(ids).logits)
    model.save_pretrained(tmp_path / "saved")
    before, after = read_tensors(read_entries(sample)), read_tensors(read_entries(tmp_path / "saved"))
    assert set(before) == set(after)
    assert all(same_bytes(before[name], after[name]) for name in before)
    assert all(map(released, layers))


def answer(capsys, *arguments: str) -> dict:
    assert main(["run", *map(str, arguments), "--device", "cpu", "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_releases_on_request_and_tells_what_is_held(capsys, sample, tiles):
    kept, once = answer(capsys, sample, "-f", tiles), answer(capsys, sample, "-f", tiles, "--release")
    sizes = sum(layer["n"] * layer["k"] for layer in kept["layers"])
    assert kept["summary"]["weight_bytes"] - once["summary"]["weight_bytes"] == sizes
    assert kept["summary"]["packed_bytes"] == once["summary"]["packed_bytes"] >= sizes
    assert {layer["kept"] for layer in kept["layers"] + once["layers"]} == {None}


def test_the_command_line_says_why_nothing_was_released(capsys, sample):
    assert main(["run", str(sample), "--device", "cpu", "--release", "--force", "reference"]) == 0
    said = capsys.readouterr().out
    assert "not released: 14 layers: reference computes m = 1, from the checkpoint's own tensors" in said
    assert main(["run", str(sample), "--device", "cpu", "--force", "reference"]) == 0
    assert "not released" not in capsys.readouterr().out


def test_a_generating_model_is_released_on_request(capsys, sample, tiles):
    pytest.importorskip("transformers")
    more = ("-f", tiles, "--generate", "Hi", "--tokens", "2")
    (kept,) = answer(capsys, sample, *more)["generated"]
    (once,) = answer(capsys, sample, *more, "--release")["generated"]
    assert once["ids"] == kept["ids"]
    assert once["weight_bytes"] < kept["weight_bytes"]
    assert once["packed_bytes"] == kept["packed_bytes"]
