"""The 1x128 input quantizer of csrc/cuda: the bytes of ops/torch_fp8.quantize_block, scales block by block."""

from __future__ import annotations

from functools import lru_cache

import torch

from kerneltable.ops.cuda_launch import INT32, POINTER, Function
from kerneltable.ops.hopper import DTYPE_CODES, ceil_div, instance

BLOCK = 128
TYPES = (POINTER, POINTER, POINTER, INT32, INT32, POINTER, INT32)
WARPS = 8
DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


@lru_cache(maxsize=64)
def quantizer(dtype: str, device: int) -> Function:
    """The instance for one input dtype ("bf16", "f16", "f32") on a device."""
    return instance("cuda/quantize_block.cu", "quantize_block", TYPES, 0, device, (("KT_IN", DTYPE_CODES[dtype]),))


def quantize_block_by_column(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows of x in groups of 128 columns.

    x        [m, k] bf16, f16 or f32 on a CUDA device from SM89 on, m at least 1, k a multiple of 4
    returns  codes [m, k] e4m3, contiguous, and scales [ceil(k / 128), m padded to a multiple of 4] f32: those of row i
             are column i; what is beyond m is not set
    """
    m, k = x.shape
    if x.stride(1) != 1 or x.stride(0) % 4 or x.data_ptr() % 16:
        x = x.contiguous()
        if x.data_ptr() % 16:
            x = x.clone()
    groups, padded = ceil_div(k, BLOCK), ceil_div(m, 4) * 4
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(groups, padded, dtype=torch.float32, device=x.device)
    launch = quantizer(DTYPES[x.dtype], x.device.index or 0)
    grid = (ceil_div(m * groups, WARPS), 1, 1)
    arguments = (x.data_ptr(), codes.data_ptr(), scales.data_ptr(), m, k, x.stride(0), padded)
    launch(grid, (32 * WARPS, 1, 1), arguments)
    return codes, scales
