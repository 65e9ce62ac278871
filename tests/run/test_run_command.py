"""`kerneltable run`: every layer held against float64, the exit code, and what is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kerneltable.cli import main
from kerneltable.cli.run_text import AS_FORCED, FIRST, refusal_lines, summary
from kerneltable.errors import KernelUnavailable
from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.run.checkpoints.checkpoint import load_linears
from kerneltable.run.checkpoints.samples import KINDS, LIBRARY_KINDS, write_sample
from kerneltable.run.choice import FORCED
from kerneltable.run.ledger import SetAside, ShapeClass, shared_ledger
from kerneltable.run.timing.measure import Failed, Measured, measure_layer
from kerneltable.select import device, select
from kerneltable.table import load_table


@pytest.fixture
def sample(tmp_path):
    write_sample("hf-fp8-block", tmp_path / "m")
    return tmp_path / "m"


def answer(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["run", *arguments, "--device", "cpu", "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_layer_of_a_checkpoint_runs_within_its_bound(capsys, sample):
    code, found = answer(capsys, str(sample), "--m", "5")
    assert code == 0
    assert found["format"] == 1
    assert len(found["layers"]) == 14
    for layer in found["layers"]:
        assert {"name", "scheme", "n", "k", "kernel", "error_over_bound", "microseconds"} <= set(layer)
        assert 0 <= layer["error_over_bound"] <= 1
        assert layer["microseconds"] > 0
    assert found["summary"]["within_bound"] == 14


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_each_kind_runs_within_its_bound_on_the_reference(capsys, kind):
    if kind in LIBRARY_KINDS:
        pytest.importorskip("compressed_tensors")
    code, found = answer(capsys, "--sample", kind, "--force", "reference", "--m", "3")
    assert code == 0
    assert {layer["kernel"] for layer in found["layers"]} == {"reference"}
    assert max(layer["error_over_bound"] for layer in found["layers"]) <= 1


def test_samples_are_kept_where_asked(capsys, tmp_path):
    code, _ = answer(capsys, "--sample", "hf-fp8-tensor", "--keep", str(tmp_path / "kept"))
    assert code == 0
    assert (tmp_path / "kept" / "hf-fp8-tensor" / "config.json").is_file()


def test_a_kernel_that_is_wrong_in_one_element_makes_the_run_fail(capsys, sample, monkeypatch):
    right = registry.load("reference")

    class Wrong(right):
        def __call__(self, x, bias):
            out = super().__call__(x, bias)
            out[-1, -1] += 1
            return out

    monkeypatch.setattr(registry, "load", lambda kernel: Wrong)
    code, found = answer(capsys, str(sample), "--force", "reference")
    assert code == 1
    assert found["summary"]["within_bound"] == 0
    assert all(layer["error_over_bound"] > 1 for layer in found["layers"])


def test_a_kernel_that_leaves_nan_makes_the_run_fail_with_null_in_json(capsys, sample, monkeypatch):
    right = registry.load("reference")

    class Unwritten(right):
        def __call__(self, x, bias):
            return torch.full_like(super().__call__(x, bias), float("nan"))

    monkeypatch.setattr(registry, "load", lambda kernel: Unwritten)
    code, found = answer(capsys, str(sample), "--force", "reference")
    assert code == 1
    assert {layer["error_over_bound"] for layer in found["layers"]} == {None}


def test_a_layer_that_no_scheme_covers_makes_the_run_fail_and_the_others_still_run(capsys, sample):
    file = sample / "model-00002-of-00002.safetensors"
    tensors = load_file(str(file))
    name = "model.layers.1.mlp.up_proj"
    del tensors[f"{name}.weight_scale_inv"]
    save_file(tensors, str(file))
    index = sample / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][f"{name}.weight_scale_inv"]
    index.write_text(json.dumps(content))
    code, found = answer(capsys, str(sample))
    assert code == 1
    assert len(found["layers"]) == 13
    assert [failed["name"] for failed in found["failed"]] == [name]
    assert "weight_scale_inv" in found["failed"][0]["reason"]


def test_a_forced_kernel_that_refuses_fails_each_layer_with_its_refusals(capsys, sample):
    code, found = answer(capsys, str(sample), "--force", "torch_scaled_mm_block")
    assert code == 1
    assert found["layers"] == []
    assert len(found["failed"]) == 14
    reason = found["failed"][0]["reason"]
    assert "torch_scaled_mm_block: runs_on" in reason
    assert "next: force no kernel, so that the table decides" in reason
    assert "route" not in reason


def test_a_required_kernel_that_refuses_fails_each_layer_with_the_way_out(capsys, sample, tmp_path):
    override = tmp_path / "only_small.yaml"
    override.write_text(
        "override: 1\nroutes: {fp8_block_w8a8: {cpu: {require: cpu_fp8}}}\n"
        "kernels: {cpu_fp8: {accepts: {n: {max: 64}}}}\n"
    )
    override.chmod(0o600)
    code, found = answer(capsys, str(sample), "-f", str(override))
    assert (code, len(found["failed"])) == (1, 14)
    assert "next: require another kernel of the route, or say `prefer`" in found["failed"][0]["reason"]


def test_an_override_changes_the_kernels(capsys, sample, tmp_path):
    override = tmp_path / "only_reference.yaml"
    override.write_text("override: 1\nroutes:\n  fp8_block_w8a8: {cpu: {require: reference}}\n")
    override.chmod(0o600)
    code, found = answer(capsys, str(sample), "-f", str(override))
    assert code == 0
    assert found["summary"]["kernels"] == {"reference": 14}


@pytest.mark.parametrize(("rows", "first"), [("16", "reference"), ("8", "cpu_fp8")])
def test_a_step_for_other_numbers_of_rows_is_refused_and_no_other(capsys, sample, tmp_path, rows, first):
    override = tmp_path / "o.yaml"
    order = "[{kernel: reference, when: {m: {min: 9}}}, cpu_fp8]"
    override.write_text(f"override: 1\nroutes:\n  fp8_block_w8a8: {{cpu: {{order: {{replace: {order}}}}}}}\n")
    override.chmod(0o600)
    code, found = answer(capsys, str(sample), "-f", str(override), "--m", rows)
    assert (code, found["summary"]["kernels"]) == (0, {first: 14})
    told = [line for line in found["summary"]["refused"] if "when.m" in line]
    assert len(told) == (first != "reference")


def test_the_text_names_every_layer_and_ends_with_a_summary(capsys, sample):
    assert main(["run", str(sample), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for word in ("model.layers.0.self_attn.k_proj", "fp8_block_w8a8", "192 x 256", "error/bound", "microseconds"):
        assert word in text
    assert "14 of 14 layers ran within their bound" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent-folder"], "absent-folder: wanted a checkpoint folder"),
        ([], "kerneltable: run: wanted MODEL_DIR or --sample"),
        (["--sample", "gguf"], "wanted a kind of hf-fp8-block"),
        (["--sample", "hf-fp8-block", "--m", "0"], "M must be 1 to"),
        (["m", "--keep", "x"], "kerneltable: run --keep: it says where samples are kept; add --sample KIND"),
        (["m", "--size", "small"], "kerneltable: run --size: it is the size of samples; add --sample KIND"),
        (["m", "--tokens", "5"], "kerneltable: run --tokens: it says how much --generate writes; add --generate TEXT"),
        (["m", "--verify", "never"], "kerneltable: run --verify: every call is checked without it"),
        (["m", "--generate", "a", "--m", "3"], "kerneltable: run --m: the text decides how many rows --generate has"),
        (["--sample", "hf-fp8-block", "--device", "h2000"], "did you mean 'h200'?"),
        (["--sample", "hf-fp8-block", "--device", "mi300x"], "device 'mi300x' cannot be used here: torch sees no rocm"),
        (["--sample", "hf-fp8-block", "--force", "cpu_fp9"], "there is no kernel 'cpu_fp9'; did you mean 'cpu_fp8'?"),
        (["--sample", "hf-fp8-block", "--force", "nope", "--generate", "a"], "there is no kernel 'nope'; known: "),
    ],
)
def test_what_cannot_be_answered_exits_with_2_and_says_why_on_stderr_once(capsys, monkeypatch, arguments, text):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count(text) == 1
    assert printed.err.splitlines()[-1].startswith("kerneltable")
    assert printed.out == ""


def test_kinds_whose_library_is_absent_are_skipped_with_a_message_and_the_exit_is_1(capsys, monkeypatch):
    from kerneltable.run.checkpoints import samples

    def absent(*_):
        raise ModuleNotFoundError("No module named 'compressed_tensors'", name="compressed_tensors.compressors")

    monkeypatch.setattr(samples, "write_with_library", absent)
    code, found = answer(capsys, "--sample", "all", "--m", "2")
    assert code == 1
    assert {layer["checkpoint"] for layer in found["layers"]} == set(KINDS) - set(LIBRARY_KINDS)
    assert len(found["summary"]["skipped"]) == len(LIBRARY_KINDS)
    wanted = "install compressed-tensors to write it: pip install 'kerneltable[samples]'"
    assert found["summary"]["skipped"][0].endswith(f"No module named 'compressed_tensors'; {wanted}")
    assert main(["run", "--sample", "all", "--m", "2", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(LIBRARY_KINDS)} of {len(KINDS)} samples were skipped"


def test_a_skipped_sample_names_the_module_that_is_missing(capsys, monkeypatch):
    from kerneltable.run.checkpoints import samples

    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(samples, "save_file", absent)
    code, found = answer(capsys, "--sample", "hf-fp8-tensor")
    assert code == 1
    assert found["summary"]["skipped"] == [
        "sample hf-fp8-tensor is skipped: No module named 'numpy'; install numpy to write it"
    ]


def test_refusals_are_grouped_and_counted(sample):
    table = load_table()
    linears = load_linears(sample, table, "cpu")
    layers = [measure_layer(linears[name], name, "m", m=2) for name in list(linears)[:3]]
    assert all(isinstance(layer, Measured) for layer in layers)
    lines = refusal_lines(layers)
    refused = {c.kernel for c in layers[0].selection.candidates if c.verdict == "refused"}
    assert len(lines) == len(refused)
    assert all("3 layers" in line for line in lines)


def test_a_kernel_that_was_set_aside_is_listed_with_its_reason(capsys, sample, monkeypatch):
    """As where nothing is compiled and nothing may be: the table refuses nothing, and the first kernel is not taken."""
    right = registry.load

    def absent(kernel):
        if kernel in ("cpu_fp8", "cpu_fp8_amx"):
            raise KernelUnavailable("compiling is switched off")
        return right(kernel)

    monkeypatch.setattr(registry, "load", absent)
    shared_ledger().forget()
    try:
        code, found = answer(capsys, str(sample))
        assert main(["run", str(sample), "--device", "cpu"]) == 0
    finally:
        shared_ledger().forget()
    assert (code, found["summary"]["kernels"]) == (0, {"reference": 14})
    (line,) = [line for line in found["summary"]["refused"] if line.startswith("cpu_fp8: ")]
    assert line == "cpu_fp8: set aside: KernelUnavailable: compiling is switched off (14 layers)"
    text = capsys.readouterr().out
    assert f"  {line}" in text
    assert FIRST not in text


def measured_with(**changes) -> Measured:
    table = load_table()
    problem = Problem("fp8_block_w8a8", n=128, k=128)
    selection = changes.pop("selection", None) or select(table, device("x86-64-v4", table), problem)
    row = {"checkpoint": "m", "name": "a", "scheme": problem.scheme, "n": 128, "k": 128, "kernel": selection.kernel}
    return Measured(**row | {"error_over_bound": 0.5, "microseconds": 1.0, "selection": selection} | changes)


def test_that_nothing_was_refused_is_said_only_when_it_is_true():
    sound = measured_with()
    alone = tuple(found for found in sound.selection.candidates if found.kernel == sound.kernel)
    clean = replace(sound.selection, candidates=alone)
    forced = replace(clean, notes=(FORCED,))
    told = {
        "first": summary([measured_with(selection=clean)], [], ()),
        "forced": summary([measured_with(selection=forced)], [], ()),
        "another": summary([measured_with(selection=clean, kernel="reference")], [], ()),
        "none": summary([], [], ()),
        "failed": summary([], [Failed("m", "a", "it broke")], ()),
    }
    said = {name: [line for line in lines if line.startswith("refused")] for name, lines in told.items()}
    assert said == {
        "first": [f"refused: nothing; {FIRST}"],
        "forced": [f"refused: nothing; {AS_FORCED}"],
        "another": ["refused: nothing"],
        "none": [],
        "failed": [],
    }


def test_what_was_set_aside_for_other_layers_or_devices_is_not_listed():
    layer = measured_with()
    first, here = layer.kernel, layer.selection.device
    problem = layer.selection.problem
    record = SetAside(first, here, ShapeClass(problem, 1), "run", "it broke", "reference")
    assert f"{first}: set aside: it broke (1 layer)" in refusal_lines([layer], [], [record])
    others = [
        replace(record, shapes=ShapeClass(replace(problem, n=256))),
        replace(record, device=replace(here, name="another")),
        replace(record, kernel="torch_scaled_mm_block"),
    ]
    assert refusal_lines([layer], [], others) == refusal_lines([layer])
