"""A row that nothing on this machine registers: answers that choose it say so, and are still answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENGINE, Ask, override

QUESTION = ("mxfp8", "--device", "epyc-genoa", "--n", "64", "--k", "64")
ON = ("--devices", "epyc-genoa")
ROW = """override: 1
kernels:
  my_kernel:
    summary: a row without a kernel
    parameters: [weight, weight_scale]
    runs_on: {cpu: {portable: true}}
    accepts: {schemes: [mxfp8], weight_block: ["1x32"], weight_scale: [e8m0], input: [bf16], output: [bf16]}
    layout: checkpoint
    numerics: {accumulator: f32, deterministic: true, batch_invariant: true}
    kind: native
    status: unverified
    why: a test
"""
FIRST = "routes: {mxfp8: {cpu: {order: {prepend: [my_kernel]}}}}\n"
IN_A_BAND = "routes: {mxfp8: {cpu: {order: {prepend: [{kernel: my_kernel, when: {m: {max: 4}}}]}}}}\n"
LAST = "routes: {mxfp8: {cpu: {order: {append: [my_kernel]}}}}\n"


def note(file: str) -> str:
    return f"kernel 'my_kernel' ({file}:3:3) is not registered here: "


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("select", *QUESTION), 0),
        (("select", *QUESTION, "--format", "json"), 0),
        (("matrix", *ON, "--scheme", "mxfp8"), 0),
        (("lock", *ON), 0),
        (("diff", *ON), 1),
    ],
)
def test_who_chooses_a_kernel_that_is_not_registered_says_so_on_stderr(
    ask: Ask, tmp_path: Path, command: tuple[str, ...], code: int
) -> None:
    file = override(tmp_path, ROW + FIRST)
    answer = ask(*command, "-f", file)
    assert answer.code == code
    assert "my_kernel" in answer.out
    assert answer.err.startswith(f"kerneltable: {note(file)}")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("route", [FIRST, IN_A_BAND])
def test_explain_notes_a_kernel_that_is_not_registered_in_text_and_json(ask: Ask, tmp_path: Path, route: str) -> None:
    file = override(tmp_path, ROW + route)
    assert f"  note: {note(file)}" in ask("explain", *QUESTION, "-f", file).out
    found = ask("explain", *QUESTION, "-f", file, "--format", "json").json
    assert (found["chosen"] == "my_kernel") == (route == FIRST)
    assert [one.startswith(note(file)) for one in found["notes"]] == [True]


def test_a_kernel_that_is_not_chosen_needs_no_registry(ask: Ask, tmp_path: Path) -> None:
    file = override(tmp_path, ROW + LAST)
    assert ask("explain", *QUESTION, "-f", file, "--format", "json").json["notes"] == []
    assert ask("select", *QUESTION, "-f", file).err == ""


def test_asking_the_registry_imports_no_torch(tmp_path: Path) -> None:
    file = override(tmp_path, ROW + FIRST)
    code = f"import sys; from kerneltable.cli import main; main({['explain', *QUESTION, '-f', file]!r}); " + (
        "sys.exit(str({'torch', 'triton', 'numpy'} & set(sys.modules) or ''))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ENGINE)}, check=False
    )
    assert (note(file) in ran.stdout, ran.stderr.strip()) == (True, "")
