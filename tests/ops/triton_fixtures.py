"""What the Triton cases share: where they run, and buffers that start as NaN."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from kerneltable.run.place import device_for, features_of
from kerneltable.table import load_table

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
E4M3 = torch.float8_e4m3fn
FEATURES = features_of(load_table(), device_for(DEVICE, load_table()))
"""What the table says of the chip that is here."""

EMPTY = torch.empty


def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
    """torch.empty, but every element is NaN (0x7f bytes where there is no NaN)."""
    made = EMPTY(*shape, **options)
    if made.dtype in FLOATS:
        return made.fill_(float("nan"))
    made.view(torch.uint8).fill_(0x7F) if made.dim() else made.fill_(0x7F)
    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer that an op allocates starts as NaN."""
    monkeypatch.setattr(torch, "empty", poisoned)


def widen_steps(rows: int, columns: int, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Block scales repeated over [rows, columns]."""
    wide = scale.repeat_interleave(block[0], 0)[:rows]
    return wide.repeat_interleave(block[1], 1)[:, :columns]


def in_gap(values: torch.Tensor, gap: int = 8) -> torch.Tensor:
    """The same matrix as rows of a wider one whose other columns are NaN (0x7f in FP8 and bytes)."""
    rows, columns = values.shape
    if values.dtype in FLOATS:
        wide = torch.full((rows, columns + gap), float("nan"), dtype=values.dtype, device=values.device)
        wide[:, :columns] = values
        return wide[:, :columns]
    wide = torch.full((rows, columns + gap), 0x7F, dtype=torch.uint8, device=values.device)
    wide[:, :columns] = values.view(torch.uint8)
    return wide.view(values.dtype)[:, :columns]


def random_codes(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Any e4m3 codes but NaN."""
    codes = torch.randint(0, 254, (rows, columns), dtype=torch.uint8, generator=generator)
    codes = torch.where(codes >= 0x7F, codes + 1, codes)
    return codes.view(E4M3).to(DEVICE)


def bits(values: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, on the CPU."""
    return values.contiguous().reshape(-1).view(torch.uint8).cpu()
