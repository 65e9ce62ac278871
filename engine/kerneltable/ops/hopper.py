"""What the Hopper kernels of csrc/cuda share on the host: tensor maps, codes of dtypes, outputs."""

from __future__ import annotations

from functools import lru_cache, partial
from types import MappingProxyType

import torch

from kerneltable.errors import ShapeUnavailable
from kerneltable.formats import FORMATS
from kerneltable.ops.cuda_launch import OTHER_CONTEXT, TensorMap, own_context

DTYPE_CODES = {"bf16": 0, "f16": 1, "f32": 2}
"""KT_IN and KT_OUT of the sources."""


FITTING = MappingProxyType({1: 1.0, 2: 1.0, 3: 0.864, 4: 0.91, 5: 0.834, 6: 0.773})
"""Blocks of a cluster -> share of the multiprocessors that clusters fill at most, a block to each, if all run at once:
as far as they did on 132 of an H200 (2026-11-21). 17 clusters of seven did not."""


PARTS_BYTES, FLAGS = 128 * 4, 2
"""Of such a block for each column of its tile, and its 32-bit words: what blocks leave for each other."""


def tiles_to_divide(tiles: int, workers: int) -> int:
    """How many tiles are divided along k (csrc/include/divided.cuh), so that all workers, blocks or clusters, end
    together.

    Those of the last wave, or of the last two if the last one is less than half a wave: its tiles would have many
    parts, and one block adds all parts of a tile. Block FP8, 2112 x 7168, 1024 rows: 30 us with 68 of 68 tiles for 66
    pairs, 72 with two. W8A16, 5120 x 25600, 1024 rows: 387 us with 160 of 160 tiles, 422 with 28 (H200, 2026-11-22).
    """
    last = tiles % workers
    return last if not last or tiles < workers or 2 * last >= workers else last + workers


@lru_cache(maxsize=65536)
def tensor_map(address: int, dtype: str, rows: int, columns: int, row_bytes: int, box: tuple[int, int]) -> TensorMap:
    """A description of a row-major matrix for the copy engine, which fetches boxes of it.

    address    of the first element, a multiple of 16
    dtype      "u8" or "bf16" or "f16" (boxes of rows of 128 bytes, swizzled), or "f32" (plain)
    row_bytes  from one row to the next, a multiple of 16
    box        rows and columns of one copy; what lies outside the matrix arrives as zeros
    returns    a CUtensorMap; it depends on the arguments alone, so the same memory used again costs a look-up
    errors     ShapeUnavailable with the driver's own name of the error
    source     CUDA driver API, cuTensorMapEncodeTiled
    """
    from cuda.bindings import driver

    kinds = driver.CUtensorMapDataType
    kind, size = {
        "u8": (kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8, 1),
        "bf16": (kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2),
        "f16": (kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2),
        "f32": (kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4),
    }[dtype]
    swizzles = driver.CUtensorMapSwizzle
    swizzled = box[1] * size == 128 and dtype != "f32"
    encode = partial(
        driver.cuTensorMapEncodeTiled,
        kind,
        2,
        address,
        [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
        [driver.cuuint64_t(row_bytes)],
        [driver.cuuint32_t(box[1]), driver.cuuint32_t(box[0])],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles.CU_TENSOR_MAP_SWIZZLE_128B if swizzled else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    status, found = encode()
    if int(status) in OTHER_CONTEXT:  # this thread has not used CUDA yet
        with own_context(torch.cuda.current_device()):
            status, found = encode()
    if int(status):
        where = f"{rows} x {columns} {dtype}, rows of {row_bytes} bytes, boxes {box}, address {address:#x}"
        raise ShapeUnavailable(f"cuTensorMapEncodeTiled: {status.name} for {where}")
    return TensorMap(found.getPtr(), found)


def map_of(matrix: torch.Tensor, dtype: str, box: tuple[int, int]) -> TensorMap:
    """The tensor map of a matrix with contiguous columns."""
    rows, columns = matrix.shape
    return tensor_map(matrix.data_ptr(), dtype, rows, columns, matrix.stride(0) * matrix.element_size(), box)


def settle(device: torch.device) -> None:
    """Wait until what was packed is in the device's memory: kernels that start early read it first, see cuda_launch."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def output_of(m: int, n: int, dtype: str, device: torch.device) -> torch.Tensor:
    """An [m, n] tensor that nothing is written to yet."""
    return torch.empty(m, n, dtype=getattr(torch, FORMATS[dtype].torch_dtype), device=device)


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
