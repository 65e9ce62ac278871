"""state_dict in the checkpoint's own layout and names, deepcopy, pickle, and other processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from types import MappingProxyType

import pytest
import torch

from kerneltable.errors import KernelInputError, LayerError
from kerneltable.model import Device, Problem
from kerneltable.run import place
from kerneltable.run.linear import QuantLinear
from kerneltable.run.place import check_place
from kerneltable.select import device, select
from kerneltable.table import load_table
from run.layers_for_torch import BY_ROWS, K, N, inputs, layer, stand_in, tensors


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# --- State dicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
def test_a_state_dict_has_names_dtypes_and_bytes_of_the_checkpoint(scale):
    given = tensors(scale=scale)
    state = torch.nn.Sequential(QuantLinear.from_tensors("fp8_block_w8a8", given)).state_dict()
    assert set(state) == {f"0.{name}" for name in given}
    assert all(same_bytes(state[f"0.{name}"], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("held", ["weight_scale", "weight_scale_inv"])
def test_a_fresh_layer_loads_a_state_dict_strictly_under_any_name_it_knows(held, scale):
    fresh = QuantLinear.from_tensors("fp8_block_w8a8", tensors(scale=held), kernel="reference")
    fresh.load_state_dict(tensors(seed=5, scale=scale), strict=True)
    assert torch.equal(fresh(inputs(3, K)), layer(seed=5)(inputs(3, K)))
    assert held in fresh.state_dict()


def test_a_state_dict_that_lacks_a_tensor_or_has_a_stranger_is_refused_when_strict():
    state = tensors(seed=5)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_scale"):
        layer().load_state_dict({"weight": state["weight"]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*zero_point"):
        layer().load_state_dict(state | {"zero_point": torch.zeros(1)})
    layer().load_state_dict(state | {"zero_point": torch.zeros(1)}, strict=False)


def test_two_names_of_one_tensor_that_differ_are_refused_and_equal_ones_are_taken():
    state = tensors()
    layer().load_state_dict(state | {"weight_scale_inv": state["weight_scale"].clone()})
    with pytest.raises(LayerError, match="name the same parameter and differ"):
        layer().load_state_dict(state | {"weight_scale_inv": state["weight_scale"] * 2})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"weight_scale": torch.ones(2, 2).bfloat16()}, LayerError),
        ({"weight": torch.ones(N, K).bfloat16()}, LayerError),
        ({"weight_scale": torch.zeros(2, 2)}, LayerError),
        ({"weight_scale": torch.ones(1, 2)}, RuntimeError),
        ({"weight": torch.ones(N, K + 1).to(torch.float8_e4m3fn)}, RuntimeError),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(change, error):
    module = layer()
    before = module(inputs(3, K))
    with pytest.raises(error, match="weight"):
        module.load_state_dict(tensors(seed=5) | change)
    assert all(same_bytes(tensor, tensors()[name]) for name, tensor in module.tensors().items())
    assert torch.equal(module(inputs(3, K)), before)


def test_the_handle_is_in_no_state_dict_and_a_state_dict_may_be_saved():
    module = layer(bias=True)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"weight", "weight_scale", "bias"}
    other = layer(bias=True, seed=4)
    other.load_state_dict(state)
    assert torch.equal(other(inputs(3, K)), module(inputs(3, K)))


# --- Copies -------------------------------------------------------------------------------------------------------


def test_a_deep_copy_is_packed_by_itself_and_shares_the_table(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer(override=BY_ROWS)
    module(inputs(3, K))
    before = list(seen.packed)
    twin = copy.deepcopy(module)
    assert twin.table is module.table
    assert twin._handle.data_ptr() != module._handle.data_ptr()
    assert seen.packed == before
    assert float(twin(inputs(3, K))[0, 0]) == 1.0
    assert seen.packed == [*before, "cpu_fp8"]


def test_a_pickled_layer_comes_back_with_names_bias_and_bits():
    given = tensors(scale="weight_scale_inv")
    module = QuantLinear.from_tensors("fp8_block_w8a8", given, torch.ones(N), name="up", kernel="reference")
    back = pickle.loads(pickle.dumps(module))
    assert back.name == "up"
    assert set(back.state_dict()) == {"weight", "weight_scale_inv", "bias"}
    assert torch.equal(back(inputs(3, K)), module(inputs(3, K)))
    assert back.explain() == module.explain()


def test_a_pickled_layer_asks_for_its_device_again(monkeypatch):
    module = layer()
    elsewhere = Device("cpu", "neon", "another machine", packages=module.selection.device.packages)
    monkeypatch.setattr(module, "_device", elsewhere)
    assert pickle.loads(pickle.dumps(module)).selection.device.name != "another machine"


def test_two_layers_of_one_table_pickle_it_once():
    model = torch.nn.Sequential(layer(), layer())
    model[1].table = model[0].table
    back = pickle.loads(pickle.dumps(model))
    assert back[0].table is back[1].table
    assert len(pickle.dumps(model)) < len(pickle.dumps(model[0])) * 1.5


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_table_device_problem_and_selection_come_back_equal_and_decide_the_same(again):
    table = load_table(overrides=[("by rows", BY_ROWS)])
    chip = device("h200", table)
    problem = Problem("mxfp8", n=256, k=256, weight_block=(1, 32))
    selection = select(table, chip, problem)
    assert again(selection) == selection
    assert (again(chip), hash(again(chip))) == (chip, hash(chip))
    assert (again(problem), hash(again(problem))) == (problem, hash(problem))
    other = again(table)
    assert other.digest == table.digest
    assert select(other, again(chip), again(problem)) == selection
    assert dict(other.marks) == dict(table.marks)


def test_what_comes_back_is_still_read_only_and_remembers_no_answers():
    table = load_table()
    select(table, device("h200", table), Problem("mxfp8", n=256, k=256))
    back = pickle.loads(pickle.dumps(table))
    assert back.answers == {}
    for mapping in (
        back.platforms,
        back.kernels,
        back.platforms["cuda"].architectures,
        back.kernels["reference"].runs_on,
    ):
        assert type(mapping) is MappingProxyType
    assert type(back.schemes["mxfp8"].parameters) is MappingProxyType


CHILD = """
import pickle, sys, torch
module, x, wanted = pickle.load(open(sys.argv[1], "rb"))
assert torch.equal(module(x), wanted)
assert module.kernel == sys.argv[2]
"""


def test_a_layer_pickled_for_a_fresh_process_computes_the_same_bits_there(tmp_path):
    module = layer(bias=True)
    x = inputs(5, K)
    (tmp_path / "layer.pickle").write_bytes(pickle.dumps((module, x, module(x))))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "layer.pickle"), "reference"]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- Devices ------------------------------------------------------------------------------------------------------


def test_tensors_on_another_gpu_than_the_given_device_are_refused():
    given = Device("cuda", "sm90", "NVIDIA H200", (9, 0), index=0)
    assert check_place(given, torch.device("cuda", 0)) is None
    assert "cuda:0 (NVIDIA H200)" in str(check_place(given, torch.device("cuda", 1)))
    assert check_place(Device("cuda", "sm90", "h200", (9, 0)), torch.device("cuda", 1)) is None
    assert check_place(Device("cpu", None), torch.device("cpu")) is None


def test_a_layer_for_another_chip_than_its_tensors_are_on_is_not_called(monkeypatch):
    table, here = load_table(), torch.device("cuda", 1)
    for present, said in (("sm90", "tensors are on cuda:1, which is sm90"), ("sm100", ""), (None, "")):
        monkeypatch.setattr(place, "architecture_at", lambda index, table, found=present: found)
        assert said in str(check_place(device("b200", table), here, table))
        assert (check_place(device("b200", table), here, table) is None) == (not said)
    assert check_place(device("b200", table), here) is None


def test_moving_a_layer_drops_what_was_packed_and_going_back_packs_again(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer()
    packed = len(seen.packed)
    module.to("meta")
    assert module(torch.empty(2, K, dtype=torch.bfloat16, device="meta")).is_meta
    assert len(seen.packed) == packed
    with pytest.raises(KernelInputError, match="x is on cpu, the layer on meta"):
        module(inputs(2, K))
    module.to_empty(device="cpu")
    module.load_state_dict(tensors())
    module(inputs(2, K))
    assert len(seen.packed) == packed + 1


def test_a_change_of_dtype_packs_nothing_again(monkeypatch):
    seen = stand_in(monkeypatch)
    module = layer()
    module(inputs(3, K))
    module.half().to(torch.bfloat16).eval().requires_grad_(False)
    module(inputs(3, K))
    assert seen.packed == ["reference"]
