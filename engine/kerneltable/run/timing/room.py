"""Whether the random tensors of a size have room on a device: asked before anything is timed, and in the making."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kerneltable.errors import ProblemError
from kerneltable.run.faults import reason_of

DRAWN = 8
"""Bytes an element of what is drawn at random: a float32, and its multiple beside it."""


def check_room(sizes: Sequence[tuple[int, int]], m: int, where: torch.device) -> None:
    """ProblemError naming the first (n, k) whose weight or whose m rows are larger than all memory of a device."""
    have = memory_of(where)
    for n, k in sizes:
        wanted = DRAWN * k * max(n, m)
        if wanted > have:
            raise ProblemError(
                f"--shapes {n}x{k}: at m={m} wanted at least {wanted / 2**30:,.0f} GiB to draw random tensors; found "
                f"{have / 2**30:,.0f} GiB of memory on {where}; ask for smaller sizes or fewer rows"
            )


@contextmanager
def making(n: int, k: int, where: torch.device) -> Iterator[None]:
    """Turn what torch raises while the tensors of an N x K are made into a ProblemError that names the size."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch says "out of memory" on a CPU as a RuntimeError
        raise ProblemError(
            f"--shapes {n}x{k}: its random tensors cannot be made on {where}: {reason_of(error)}; ask for smaller "
            "sizes or fewer rows"
        ) from None


def memory_of(where: torch.device) -> int:
    """All bytes of memory that a device has."""
    if where.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, total = torch.get_device_module(where).mem_get_info(where)
    return int(total)
