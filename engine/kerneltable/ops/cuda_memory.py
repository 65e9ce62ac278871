"""Device memory that is no usual tensor: what lies between two launches of one call, and what is kept for good.

Between launches: from torch's caching allocator without the cost of a tensor. It belongs to the stream it was taken
for, as that of a tensor would: given back after the last launch that uses it, it is used again by later work of this
stream alone. While a graph is captured it comes from the graph's own pool.

For good: beside torch's allocator. A warm-up run of torch.compile(mode="reduce-overhead") allocates from the pool of
the graph that is captured next, which must not hold anything that lives longer.
"""

from __future__ import annotations

from typing import Any

import torch

from kerneltable.ops.cuda_launch import Function, checked, own_context


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


class _Words:
    """32-bit words on a device, as torch takes them; source: the CUDA array interface, version 3, of Numba's docs."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "<i4", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


def own_zeros(count: int, device: torch.device) -> torch.Tensor:
    """[count] int32 zeros that are kept as long as the process lives, there at once: no stream has to wait for them.

    Also while another thread captures a graph. Without cuda-bindings they come from torch, for the current stream.
    errors   torch.OutOfMemoryError, KernelUnavailable with the driver's own name of the error
    """
    with torch.inference_mode(False):  # kernels write to them, in and out of inference mode
        try:
            from cuda.bindings import driver
        except ImportError:
            return torch.zeros(count, dtype=torch.int32, device=device)
        if device.type != "cuda":
            return torch.zeros(count, dtype=torch.int32, device=device)
        with torch.cuda.device(device), own_context(device.index or 0):
            return torch.as_tensor(_Words(_zeroed(driver, 4 * count), count), device=device)


def _zeroed(driver: Any, bytes: int) -> int:
    what, relaxed = "counters of a stream", driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = checked(driver.cuThreadExchangeStreamCaptureMode(relaxed), what)
    try:
        answer = driver.cuMemAlloc(bytes)
        if answer[0] == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {bytes} bytes for {what}")
        address = int(checked(answer, what))
        stream = checked(driver.cuStreamCreate(int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)), what)
        checked(driver.cuMemsetD8Async(address, 0, bytes, stream), what)
        checked(driver.cuStreamSynchronize(stream), what)
        checked(driver.cuStreamDestroy(stream), what)
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)
    return address
