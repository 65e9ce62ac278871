"""Marks for torch.compile: those of torch's own decorators, without the import of torch._dynamo."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kerneltable.ops.torch_dynamo import constant_in_graphs, untraced


def test_the_mark_is_that_of_torch() -> None:
    def zero() -> int:
        return 0

    ours = dict(vars(constant_in_graphs(lambda: 0)))
    assert ours == vars(torch.compiler.assume_constant_result(zero))


def test_a_graph_holds_what_a_constant_was() -> None:
    asked: list[bool] = []

    @constant_in_graphs
    def told() -> bool:
        asked.append(True)
        return len(asked) == 1

    compiled = torch.compile(lambda x: x + 1 if told() else x, backend="eager", fullgraph=True)
    assert [float(compiled(torch.zeros(()))) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert len(asked) == 1


def test_what_is_untraced_is_left_alone_and_all_below_it() -> None:
    seen: list[bool] = []

    def below(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.compiler.is_compiling())
        return x + 1

    def traced(x: torch.Tensor) -> torch.Tensor:
        return below(x)

    @untraced
    def alone(x: torch.Tensor) -> torch.Tensor:
        return below(x)

    for function in (traced, alone):
        assert float(torch.compile(function, backend="eager")(torch.zeros(()))) == 1.0
    assert seen == [True, False]


def test_a_torch_without_frames_to_skip_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy")
    assert untraced(lambda: 3)() == 3


def test_kerneltable_does_not_import_what_compiles() -> None:
    code = "import sys, kerneltable.run.linear, kerneltable.ops.torch_op as op; op.register(); "
    code += "sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
