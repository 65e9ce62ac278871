"""What a caller may give a layer and what is refused, in words, before anything is bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kerneltable.errors import KernelInputError, LayerError, ProblemError
from kerneltable.run.linear import QuantLinear
from run.layers_for_torch import K, inputs, layer, tensors

SCHEME = "fp8_block_w8a8"


def build(scheme=SCHEME, given=None, **options):
    return QuantLinear.from_tensors(scheme, tensors() if given is None else given, name="up_proj", **options)


@pytest.mark.parametrize("block", [(128, 128), [128, 128]])
def test_a_block_is_two_numbers(block):
    assert build(weight_block=block).declared.weight_block == (128, 128)


@pytest.mark.parametrize("block", [128, "128x128", (128,), (128, 128, 128), (128, 0), (128.0, 128), (True, 128), {}])
def test_another_block_is_refused_as_it_was_written(block):
    with pytest.raises(LayerError, match=r"up_proj: weight_block must be two positive integers.*found .*\(128, 128\)"):
        build(weight_block=block)


@pytest.mark.parametrize("table", ["dispatch.yaml", Path("dispatch.yaml"), {}, 1])
def test_a_table_is_a_table_and_no_path(table):
    with pytest.raises(ProblemError, match=r"up_proj: table must be a Table.*found .*load_table\(path\)"):
        build(table=table)


@pytest.mark.parametrize("scheme", [None, 8, b"mxfp8", [SCHEME]])
def test_a_scheme_is_a_name(scheme):
    with pytest.raises(ProblemError, match=r"up_proj: scheme must be a name; found .*the table has .*mxfp8"):
        build(scheme)


@pytest.mark.parametrize("given", [[], "weight", 7, {1: torch.ones(1)}, torch.ones(2)])
def test_tensors_are_a_mapping_from_names(given):
    with pytest.raises(LayerError, match=r"up_proj: tensors must map names to tensors; found"):
        build(given=given)
    with pytest.raises(LayerError, match=r"found NoneType"):
        QuantLinear.from_tensors(SCHEME, None)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1.0], "list"),
        (1.0, "float"),
        (torch.ones(2, 2).to_sparse(), "a sparse_coo tensor"),
    ],
)
@pytest.mark.parametrize("key", ["weight", "weight_scale"])
def test_each_of_them_is_a_plain_tensor(key, value, found):
    with pytest.raises(LayerError, match=f"up_proj: {key} must be a plain tensor; found {found}"):
        build(given={**tensors(), key: value})


@pytest.mark.parametrize("key", ["keep_checkpoint", "trusted_scales"])
@pytest.mark.parametrize("answer", ["no", "", 0, 1, None])
def test_a_yes_or_no_is_true_or_false(key, answer):
    with pytest.raises(LayerError, match=f"up_proj: {key} must be True or False; found"):
        build(**{key: answer})


@pytest.mark.parametrize("x", [None, [1.0], 1.0, "x"])
@pytest.mark.parametrize("casting", [False, True])
def test_an_input_is_a_tensor(x, casting):
    module = layer(name="up_proj")
    refused = pytest.raises(KernelInputError, match=f"up_proj: x must be a tensor; found {type(x).__name__}")
    with torch.autocast("cpu", torch.bfloat16, enabled=casting), refused:
        module(x)
    assert module(inputs(3, K)).shape[0] == 3
