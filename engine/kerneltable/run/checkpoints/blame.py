"""Whether an error that came up around a checkpoint says something about it."""

from __future__ import annotations

import torch

from kerneltable.errors import KernelTableError
from kerneltable.run.faults import Meaning, meaning_of


def speaks_of_checkpoint(error: Exception) -> bool:
    """False for errors that pass as they are: kerneltable's own, of memory, and of a device."""
    passes = isinstance(error, KernelTableError | MemoryError | torch.AcceleratorError)
    return not passes and meaning_of(error) is Meaning.KERNEL
