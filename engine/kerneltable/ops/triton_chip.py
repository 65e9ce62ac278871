"""What the Triton ops must know of a device, and the shapes of one program's work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from kerneltable.errors import KernelInputError


@dataclass(frozen=True, slots=True)
class Chip:
    """Facts of one device that shape a launch.

    multiprocessors    programs that can run side by side before any waits
    shared_memory_kib  what one program may use
    fp8_convert        the chip converts e4m3 to and from other types by itself (CUDA, where its matrix units take FP8)
    ptx                inline PTX on pairs of bf16 may be used (CUDA, where the matrix units take bf16)
    wgmma              the matrix unit reads one operand from registers and one from shared memory
    interpreted        the tensors are on the CPU, so Triton's interpreter computes them
    """

    multiprocessors: int
    shared_memory_kib: int
    fp8_convert: bool
    ptx: bool
    wgmma: bool
    interpreted: bool


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's part of a matrix product, block_m x block_n, by block_k at a time.

    group_m   rows of tiles that run together, so that they share weights in L2
    split_k   parts of k computed apart, then added in a fixed order
    swap      computes weight x input^T: the weight takes the 64-row side of the matrix unit
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    split_k: int = 1
    group_m: int = 8
    swap: bool = False


@dataclass(frozen=True, slots=True)
class Strip:
    """One program's part of a product with one row: block_n outputs, block_k columns at a time, no matrix unit."""

    block_n: int
    block_k: int
    warps: int


# Largest m of a band and the tile for it; bands ascend, the last one has no end.
Bands = Sequence[tuple[int | None, Tile]]


def chip_of(device: torch.device, features: Collection[str]) -> Chip:
    """The facts of a torch device; a CPU device stands for Triton's interpreter, as does a tensor without storage.

    features   of the table's architecture; none where it describes no such chip, which then does without
    """
    if device.type in ("cpu", "meta"):
        return Chip(
            multiprocessors=4, shared_memory_kib=99, fp8_convert=False, ptx=False, wgmma=False, interpreted=True
        )
    if device.type == "xpu":
        found = torch.xpu.get_device_properties(device)
        units = int(getattr(found, "gpu_subslice_count", 64))
        shared = int(getattr(found, "local_mem_size", 64 * 1024)) // 1024
        return Chip(units, shared, fp8_convert=False, ptx=False, wgmma=False, interpreted=False)
    properties = torch.cuda.get_device_properties(device)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0) or 64 * 1024) // 1024
    return Chip(
        multiprocessors=properties.multi_processor_count,
        shared_memory_kib=shared,
        **abilities(features),
        interpreted=False,
    )


def abilities(features: Collection[str]) -> dict[str, bool]:
    """The facts of a Chip that features of the table's architecture decide."""
    return {"fp8_convert": "mma_fp8" in features, "ptx": "mma_bf16" in features, "wgmma": "wgmma" in features}


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make device the current one for a launch, at no cost when it is; Triton launches on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def stage_bytes(tile: Tile, input_bytes: int) -> int:
    """Shared memory of one pipeline stage: one input tile and one weight tile of 1-byte codes."""
    return tile.block_k * (tile.block_m * input_bytes + tile.block_n)


def fit(tile: Tile, input_bytes: int, shared_memory_kib: int) -> Tile:
    """The tile with as many stages as shared memory holds, and half as wide while not even two stages fit."""
    room = (shared_memory_kib - 2) * 1024  # scales, barriers and reductions take less than 2 KiB
    while 2 * stage_bytes(tile, input_bytes) > room and max(tile.block_m, tile.block_n) > 32:
        wide = "block_m" if tile.block_m > tile.block_n else "block_n"
        tile = replace(tile, **{wide: getattr(tile, wide) // 2})
    stages = min(tile.stages, room // stage_bytes(tile, input_bytes))
    return replace(tile, stages=max(1, stages))


def split(tile: Tile, m: int, n: int, k: int, multiprocessors: int) -> Tile:
    """Split k into parts that are computed apart.

    Up to 64 rows the weight's bytes are the bound, and four programs a multiprocessor draw more of them than one does;
    beyond, only while half of the chip would idle. Parts of few steps cost more than they gain (measured on an H200).
    """
    programs = -(-m // tile.block_m) * -(-n // tile.block_n)
    steps = -(-k // tile.block_k)
    room, least = (4 * multiprocessors, 14) if m <= 64 else (multiprocessors, 8)
    parts = 1
    while parts < 8 and programs * parts * 2 <= room and steps // (parts * 2) >= least:
        parts *= 2
    return replace(tile, split_k=parts, stages=tile.stages if parts == 1 else min(tile.stages, 4))


def strip(k: int) -> Strip:
    """The work of one program for a single row: measured on an H200, wide strips for short k."""
    return Strip(block_n=8, block_k=1024, warps=4) if k >= 4096 else Strip(block_n=16, block_k=512, warps=4)


def choose(bands: Bands, m: int) -> Tile:
    """The tile of the band that holds m."""
    for largest, tile in bands:
        if largest is None or m <= largest:
            return tile
    return bands[-1][1]


def widened(
    bands: Bands,
    size: tuple[int, int, int],
    multiprocessors: int,
    shared_memory_kib: int,
    input_bytes: int,
    wgmma: bool,
) -> Tile | Strip:
    """The work of one program of a product whose weights are widened to the input's type.

    size          m, n, k
    input_bytes   of one element of the input
    wgmma         the chip's matrix unit reads one operand from registers: then the weight may be that one (swap)
    """
    m, n, k = size
    if m == 1:
        return strip(k)
    if input_bytes == 4:  # float32 products have no matrix unit: small tiles, no swap
        tile = Tile(block_m=16 if m <= 16 else 32, block_n=32, block_k=32, warps=4, stages=3)
    else:
        tile = choose(bands, m)
        tile = tile if wgmma else replace(tile, swap=False)
    return split(fit(tile, input_bytes, shared_memory_kib), m, n, k, multiprocessors)


def require(fits: bool, op: str, wanted: str, found: object) -> None:
    """Raise KernelInputError unless the tensor fits what the op takes."""
    if not fits:
        raise KernelInputError(f"{op}: wanted {wanted}, found {found}; see the row of the kernel in the table")
