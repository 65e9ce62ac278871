"""`show --origin`: place, history and removals, as text and as JSON."""

from __future__ import annotations

from pathlib import Path

from commands import Ask, override

from kerneltable.table import load_table

TEXT = """override: 1
routes: {mxfp8: {cuda: {prefer: reference, order: {remove: [torch_mxfp8_emulation]}}}}
kernels: {triton_mxfp8_w8a16: {accepts: {m: {max: 64}, input: [bf16]}}}
"""


def test_origin_prints_place_value_and_what_was_removed(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, TEXT)
    answer = ask("show", "routes.mxfp8.cuda", "--origin", "-f", file)
    steps = load_table().routes["mxfp8", "cuda"].steps
    gone = next(step for step in steps if step.kernel == "torch_mxfp8_emulation")
    lines = [" ".join(line.split()) for line in answer.out.splitlines()]
    assert (answer.code, answer.err) == (0, "")
    assert f"{file}:2:61 # removed torch_mxfp8_emulation ({gone.mark})" in lines
    assert f"{file}:2:33 prefer: reference" in lines
    assert f"{steps[0].mark} - {steps[0].kernel}" in lines
    assert [line.split()[1] for line in lines[:2]] == ["dispatch.yaml", file]


def test_origin_as_json_has_history_and_removals(ask: Ask, tmp_path: Path) -> None:
    more = override(tmp_path, "override: 1\nkernels: {triton_mxfp8_w8a16: {accepts: {m: {max: 32}}}}\n", "more.yaml")
    first = override(tmp_path, TEXT)
    path = "kernels.triton_mxfp8_w8a16.accepts"
    found = ask("show", path, "--origin", "-f", first, "-f", more, "--format", "json").json
    values = {(value["path"], value["value"]): value for value in found["values"]}
    bound = values[f"{path}.m.max", "32"]
    assert (bound["where"], bound["removed"]) == (f"{more}:2:51", None)
    assert bound["replaced"] == [{"value": "64", "where": f"{first}:3:51"}]
    assert values[f"{path}.input", "f32"]["removed"] == f"{first}:3:63"
    assert len(found["layers"]) == 3
    assert all(len(layer["sha256"]) == 64 for layer in found["layers"])


def test_origin_of_a_table_without_overrides_has_no_history(ask: Ask) -> None:
    found = ask("show", "kernels", "--origin", "--format", "json").json["values"]
    assert found
    assert not [value for value in found if value["replaced"] or value["removed"]]


def test_origin_refuses_a_path_that_is_not_there(ask: Ask) -> None:
    answer = ask("show", "routes.mxfp9", "--origin")
    assert (answer.code, answer.out) == (2, "")
    assert "did you mean 'mxfp8'?" in answer.err
