"""`verify` as a layer says it: which of its calls are held against the reference, whatever others do."""

from __future__ import annotations

import pytest
import torch
from faulty import TWICE, layer_tensors, rows

from kerneltable.errors import KernelFault, LayerError
from kerneltable.run.ledger import shared_ledger
from kerneltable.run.linear import QuantLinear
from kerneltable.table import load_table

WRONG = "cpu_fp8"
PLACE = "override: 1\nroutes:\n  fp8_block_w8a8: {cpu: {order: {replace: [cpu_fp8, reference]}}}\n"


@pytest.fixture
def made(fakes):
    """verify -> a layer on the CPU whose first kernel is right until the fakes are armed."""
    fakes.faults[WRONG] = TWICE
    fakes.armed = False
    table = load_table(overrides=[("cpu", PLACE)])
    return lambda verify, **more: QuantLinear.from_tensors(
        "fp8_block_w8a8", layer_tensors(), table=table, verify=verify, **more
    )


def right(x: torch.Tensor) -> torch.Tensor:
    return QuantLinear.from_tensors("fp8_block_w8a8", layer_tensors(), kernel="reference", verify="never")(x)


def test_always_finds_a_kernel_that_turns_wrong_and_the_same_call_is_right(made, fakes):
    layer, x = made("always"), rows(5)
    assert torch.equal(layer(x), right(x))
    assert layer.kernel_for(5) == WRONG
    fakes.armed = True
    assert torch.equal(layer(x), right(x))
    assert layer.kernel_for(5) == "reference"
    (record,) = shared_ledger().report().set_aside
    assert (record.kernel, record.instead) == (WRONG, "reference")
    assert "times its bound" in record.reason


def test_first_checks_the_first_call_alone(made, fakes):
    layer, x = made("first"), rows(5)
    layer(x)
    fakes.armed = True
    assert not torch.equal(layer(x), right(x))


def test_never_checks_no_number(made, fakes):
    fakes.armed = True
    layer, x = made("never"), rows(5)
    assert not torch.equal(layer(x), right(x))
    assert shared_ledger().report().checked == {}


@pytest.mark.parametrize(("mode", "found"), [("always", True), ("never", False)])
def test_a_layer_that_says_nothing_does_as_the_ledger_says(made, fakes, monkeypatch, mode, found):
    monkeypatch.setattr(shared_ledger(), "verify", mode)
    layer, x = made(None), rows(5)
    layer(x)
    fakes.armed = True
    assert torch.equal(layer(x), right(x)) == found


def test_one_layer_may_be_checked_among_others_that_are_not(made, fakes):
    careful, plain, x = made("always"), made("first"), rows(3)
    careful(x), plain(x)
    before = fakes.calls[WRONG]
    plain(x)
    assert fakes.calls[WRONG] == before + 1
    careful(x)
    assert fakes.calls[WRONG] == before + 3  # a checked call runs twice


def test_a_required_kernel_that_is_wrong_is_an_error(made, fakes):
    layer = made("always", kernel=WRONG)
    layer(rows(2))
    fakes.armed = True
    with pytest.raises(KernelFault, match="times its bound"):
        layer(rows(2))


def test_a_word_that_is_none_of_them_is_refused(made):
    with pytest.raises(LayerError, match="verify must be one of first, always, never; found 'often'"):
        made("often")


def test_copies_keep_what_was_asked_for(made):
    import copy

    assert copy.deepcopy(made("always")).declared.verify == "always"


def test_layers_of_a_checkpoint_and_of_a_table_in_force_are_checked_as_asked(tmp_path):
    from kerneltable.run.checkpoints.checkpoint import load_linears
    from kerneltable.run.checkpoints.samples import write_sample
    from kerneltable.run.engine import Engine

    write_sample("hf-fp8-block", tmp_path / "m")
    linears = load_linears(tmp_path / "m", device="cpu", verify="always")
    assert {linears[name].declared.verify for name in list(linears)[:2]} == {"always"}
    layer = Engine().linear("fp8_block_w8a8", layer_tensors(), verify="never")
    assert layer.declared.verify == "never"


def test_layers_of_a_model_are_checked_as_asked(tmp_path):
    pytest.importorskip("transformers")
    from kerneltable.run.checkpoints.model_loading import load
    from kerneltable.run.checkpoints.samples import write_sample

    write_sample("hf-fp8-block", tmp_path / "m")
    model = load(tmp_path / "m", device="cpu", verify="always")
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert {layer.declared.verify for layer in layers} == {"always"}
    shared_ledger().forget()
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
        before = sum(shared_ledger().report().checked.values())
        model(torch.tensor([[1, 2, 3]]))
    assert sum(shared_ledger().report().checked.values()) == before + len(layers)
