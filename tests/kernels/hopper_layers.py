"""Layers of hopper_fp8_block on a GPU and inputs that try its quantizer, for tests of calls that are one launch."""

from __future__ import annotations

import pytest
import torch

from kerneltable.kernels.hopper_fp8_block import Kernel
from kerneltable.model import Problem
from kerneltable.ops.cuda_chip import CudaChip, cuda_chip
from kerneltable.table import load_table

ON_HOPPER = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def this_chip() -> CudaChip:
    units = torch.cuda.get_device_properties(0).multi_processor_count
    return cuda_chip(load_table().platforms["cuda"].architectures["sm90"], units)


def layer(n: int, k: int, dtype: str = "bf16", output: str = "bf16") -> Kernel:
    weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    scale = (torch.rand(-(-n // 128), -(-k // 128), device="cuda") + 0.5) * k**-0.5
    problem = Problem("fp8_block_w8a8", m=1, n=n, k=k, input=dtype, output=output)  # the rest is compiled when asked
    return Kernel(problem, weight=weight, weight_scale=scale, chip=this_chip())


def inputs(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of different magnitudes with groups of zeros, tiny numbers, infinity and NaN in some."""
    x = torch.randn(m, k, device="cuda") * torch.randn(m, 1, device="cuda").exp()
    x[0, :128] = 0
    x[m // 2, 128:256] *= 1e-30
    if m > 3:
        x[1, k // 2], x[3, k - 1] = torch.nan, torch.inf
    return x.to(dtype)


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
