"""Whole models: logits and greedy text of a checkpoint computed by kerneltable, beside plain models of its numbers."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("transformers")

import torch
from dequantized_model import dequantized, quant_linears, scheme_model

from kerneltable.run.checkpoints.model_loading import load
from kerneltable.run.checkpoints.samples import KINDS, LIBRARY_KINDS, write_sample
from kerneltable.run.oracle import bound, error_over_bound, quantizes_input, reference64

PROMPT = torch.tensor([[72, 101, 108, 108, 111, 44, 32, 0, 511]])


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """kind -> a checkpoint of that kind, written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(kind):
        if kind in LIBRARY_KINDS:
            pytest.importorskip("compressed_tensors")
        if not (root / kind).exists():
            write_sample(kind, root / kind)
        return root / kind

    return made


def greedy(model: torch.nn.Module, tokens: int = 64) -> list[int]:
    with torch.inference_mode():
        ids = model.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return ids[0, PROMPT.shape[1] :].tolist()


def test_greedy_text_of_a_weight_only_model_is_that_of_the_dequantized_model_token_for_token(sample):
    model = load(sample("ct-w8a16"), device="cpu", dtype=torch.float32)
    assert len(quant_linears(model)) == 14
    tokens = greedy(model)
    assert len(tokens) == 64
    assert tokens == greedy(dequantized(sample("ct-w8a16"), "ct-w8a16", torch.float32))


def test_another_scale_makes_another_text(sample):
    model = load(sample("ct-w8a16"), device="cpu", dtype=torch.float32)
    other = dequantized(sample("ct-w8a16"), "ct-w8a16", torch.float32)
    other.get_submodule("model.layers.1.mlp.down_proj").weight.data *= 1.5
    assert greedy(model) != greedy(other)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_and_logits_of_the_reference_kernel_are_exactly_those_of_the_scheme(sample, kind):
    model = load(sample(kind), device="cpu", kernel="reference", dtype=torch.float32)
    assert {layer.kernel for layer in quant_linears(model).values()} == {"reference"}
    meaning = scheme_model(sample(kind), kind, model)
    assert greedy(model) == greedy(meaning)
    with torch.no_grad():
        assert torch.equal(model(PROMPT).logits, meaning(PROMPT).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_within_its_bound_at_the_inputs_that_the_model_makes(sample, kind):
    """Sums that differ in the last bit can round the next layer's input to another 8-bit code, so whole W8A8 models
    agree exactly only with equal sums (the test above); each layer at equal inputs is within its kernel's bound."""
    layers = quant_linears(load(sample(kind), device="cpu", dtype=torch.float32))
    meaning = scheme_model(sample(kind), kind, load(sample(kind), device="cpu", dtype=torch.float32))
    inputs = {}
    for name in layers:
        meaning.get_submodule(name).register_forward_hook(lambda _, x, out, name=name: inputs.update({name: x[0]}))
    with torch.no_grad():
        meaning(PROMPT)
    assert set(inputs) == set(layers)
    for name, layer in layers.items():
        x = inputs[name].reshape(-1, layer.problem.k)
        row = layer.table.kernels[layer.kernel]
        ref, S = reference64(layer.problem, layer.tensors(), x, None, quantizes_input(layer.problem, row.kind))
        assert error_over_bound(layer(x), ref, S, layer.problem.k, "f32", row.numerics.accumulator) <= 1, name


class Norm64(torch.nn.Module):
    """RMS norm in float64; the model's own goes through float32."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Narrow(torch.nn.Module):
    """A float32 layer inside a float64 model."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.float()).double()


def with_layers(exact: torch.nn.Module, layers: dict[str, torch.nn.Module]) -> torch.nn.Module:
    model = copy.deepcopy(exact)
    for name, layer in layers.items():
        model.set_submodule(name, Narrow(layer))
    return model


def allowed_and_exact(exact: torch.nn.Module, layers, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each chosen logit of the last token may move when every linear errs by its own bound, and the logits.

    First order: the sum over all outputs of all linears of |d logit / d output| times that output's bound, which is the
    kernel's (float32 output) plus 2^-24 S for x, narrowed to float32. Twice that covers the second order, whose size
    relative to the first is that of the perturbation: the test holds it below a tenth. The bound is that of the worst
    case, all errors at their limit and of one sign; the tests above see far smaller faults.
    """
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = (inputs[0].detach(), output)

        return hook

    handles = [exact.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    logits = exact(PROMPT).logits[0, -1, chosen]
    for handle in handles:
        handle.remove()
    bounds = []
    for name, layer in layers.items():
        x, out = seen[name]
        S = x.abs() @ exact.get_submodule(name).weight.detach().abs().T
        accumulator = layer.table.kernels[layer.kernel].numerics.accumulator
        bounds.append(bound(out.detach(), S, layer.problem.k, "f32", accumulator) + 2.0**-24 * S)
    outputs = [seen[name][1] for name in layers]
    allowed = torch.zeros(len(chosen), dtype=torch.float64)
    for i, logit in enumerate(logits):
        slopes = torch.autograd.grad(logit, outputs, retain_graph=True)
        allowed[i] = 2 * sum((slope.abs() * b).sum() for slope, b in zip(slopes, bounds, strict=True))
    return allowed, logits.detach()


@pytest.fixture(scope="module")
def weight_only(sample):
    """A float64 model of the numbers, the float32 QuantLinears of the same checkpoint, and the chosen logits."""
    folder = sample("ct-w8a16")
    exact = dequantized(folder, "ct-w8a16", torch.float64)
    for name, module in list(exact.named_modules()):
        if type(module).__name__ == "Qwen3RMSNorm":
            exact.set_submodule(name, Norm64(module))
    layers = quant_linears(load(folder, device="cpu", dtype=torch.float32))
    chosen = torch.arange(0, 512, 32)
    return exact, layers, chosen


def test_logits_of_a_weight_only_model_are_within_the_bound_that_its_linears_leave(weight_only):
    exact, layers, chosen = weight_only
    allowed, logits = allowed_and_exact(exact, layers, chosen)
    with torch.no_grad():
        found = with_layers(exact, layers)(PROMPT).logits[0, -1, chosen]
    assert torch.isfinite(allowed).all()
    assert float(allowed.max() / logits.abs().max()) < 0.1
    assert 0 < float(((found - logits).abs() / allowed).max()) <= 1


def test_scales_of_one_layer_that_are_off_by_a_half_break_that_bound(weight_only):
    exact, layers, chosen = weight_only
    allowed, logits = allowed_and_exact(exact, layers, chosen)
    name = "model.layers.0.mlp.up_proj"
    wrong = copy.deepcopy(layers[name])
    state = wrong.state_dict()
    state["weight_scale"] = state["weight_scale"] * 1.5
    wrong.load_state_dict(state)
    with torch.no_grad():
        found = with_layers(exact, layers | {name: wrong})(PROMPT).logits[0, -1, chosen]
    assert float(((found - logits).abs() / allowed).max()) > 1
