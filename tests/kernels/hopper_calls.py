"""Layers of the Hopper kernels on a driver that only writes down what they launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_launches import Driver

from kerneltable.kernels import hopper_fp8_block, hopper_w8a16
from kerneltable.model import Problem
from kerneltable.ops import cuda_quantize, hopper, hopper_fp8_launch, stream_memory
from kerneltable.ops import hopper_fp8_block as fp8_op
from kerneltable.ops import hopper_fp8_fused as fused_op
from kerneltable.ops import hopper_fp8_once as once_op
from kerneltable.ops import hopper_w8a16 as w8a16_op
from kerneltable.ops.cuda_chip import CudaChip

N, K = 256, 384
CACHED = (
    cuda_quantize.prepare,
    fp8_op.prepare,
    fp8_op.scratch,
    fused_op.prepare,
    once_op.prepare,
    w8a16_op.prepare,
    w8a16_op.input_maps,
)
CHIP = CudaChip("sm90", "sm_90a", 232448, (), 132)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    for module in (cuda_quantize, fp8_op, fused_op, once_op, w8a16_op):
        monkeypatch.setattr(module, "load", found.load)
    for module in (hopper, fp8_op, hopper_fp8_launch, w8a16_op):
        monkeypatch.setattr(module, "tensor_map", found.tensor_map)
    for kernel in (hopper_fp8_block, hopper_w8a16):
        monkeypatch.setattr(kernel, "needed", lambda chip, name, device: CHIP)
    monkeypatch.setattr(once_op, "Repeated", found.repeated)
    monkeypatch.setattr(stream_memory, "eager_stream", lambda function: found.stream)
    monkeypatch.setattr(hopper_fp8_block, "take", found.take)
    monkeypatch.setattr(hopper_fp8_block, "give_back", found.give_back)
    for cached in CACHED:
        cached.cache_clear()
    yield found
    for cached in CACHED:
        cached.cache_clear()


def fp8_kernel() -> Any:
    weight = torch.zeros(N, K, dtype=torch.float8_e4m3fn)
    problem = Problem("fp8_block_w8a8", n=N, k=K, output="bf16")
    return hopper_fp8_block.Kernel(problem, weight=weight, weight_scale=torch.ones(2, 3), chip=CHIP)


def w8a16_kernel() -> Any:
    weight = torch.zeros(N, K, dtype=torch.float8_e4m3fn)
    problem = Problem("w8a16_fp8", n=N, k=K, output="bf16", weight_granularity="channel")
    return hopper_w8a16.Kernel(problem, weight=weight, weight_scale=torch.ones(N, 1), chip=CHIP)
