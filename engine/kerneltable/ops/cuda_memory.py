"""Memory between two launches of one call, from torch's caching allocator without the cost of a tensor.

It belongs to the stream it was taken for, as that of a tensor would: given back after the last launch that uses it,
it is used again by later work of this stream alone. While a graph is captured it comes from the graph's own pool.
"""

from __future__ import annotations

import torch

from kerneltable.ops.cuda_launch import Function


def take(bytes: int, function: Function) -> int:
    """The address of new memory for the current stream of a function's device, a multiple of 512.

    errors   torch.OutOfMemoryError
    """
    device = function.device
    if torch._C._cuda_getDevice() == device:
        return _allocate(bytes, function.stream_of(device))
    with torch.cuda.device(device):  # the allocator gives memory of the current one
        return _allocate(bytes, function.stream_of(device))


def give_back(address: int) -> None:
    """Return what `take` gave."""
    torch._C._cuda_cudaCachingAllocator_raw_delete(address)


def _allocate(bytes: int, stream: int) -> int:
    found: int = torch._C._cuda_cudaCachingAllocator_raw_alloc(bytes, stream)
    return found
