"""Layers of hopper_fp8_rowwise with every kind of scales, on a driver that only writes down what they launch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from recorded_launches import Driver

from kerneltable.kernels import hopper_fp8_rowwise
from kerneltable.kernels.hopper_fp8_rowwise import Kernel
from kerneltable.model import Problem
from kerneltable.ops import hopper, hopper_fp8_launch, stream_memory
from kerneltable.ops import hopper_fp8_block as block_op
from kerneltable.ops import hopper_fp8_rowwise as op
from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops.cuda_chip import CudaChip
from kerneltable.run.layer_data import LayerData, random_layer
from kerneltable.select import complete
from kerneltable.table import load_table

CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)
KINDS = {
    "token and channel": {"input_granularity": "token", "weight_granularity": "channel"},
    "tensor and channel": {"input_granularity": "tensor", "weight_granularity": "channel"},
    "limited": {"input_granularity": "token", "weight_granularity": "channel"},
    "static": {"input_scaling": "static", "input_granularity": "tensor", "weight_granularity": "tensor"},
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (op, once_op, block_op):
        monkeypatch.setattr(module, "load", found.load)
        module.prepare.cache_clear()
    for module in (hopper, hopper_fp8_launch, op, once_op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    monkeypatch.setattr(hopper_fp8_rowwise, "needed", lambda chip, name, device: CHIP)
    monkeypatch.setattr(once_op, "Repeated", found.repeated)
    monkeypatch.setattr(stream_memory, "eager_stream", lambda function: found.stream)
    yield found
    for module in (op, once_op, block_op):
        module.prepare.cache_clear()


def problem_of(n: int, k: int, kind: str, **details: object) -> Problem:
    problem = Problem("fp8_w8a8", n=n, k=k, **KINDS[kind], **details)  # type: ignore[arg-type]
    return complete(load_table().schemes["fp8_w8a8"], problem)


def bound(problem: Problem, data: LayerData, chip: CudaChip) -> Kernel:
    return Kernel(problem, **data.tensors, chip=chip)


def data_of(problem: Problem, kind: str, generator: torch.Generator) -> LayerData:
    """A layer's tensors; "limited" has the largest scale of the input's rows that some of them would exceed."""
    found = random_layer(problem, generator)
    if kind == "limited":
        found.tensors["input_scale_ub"] = found.x.abs().amax().float() / 448 / 2
    return found
