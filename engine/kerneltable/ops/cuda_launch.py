"""Loading a cubin into a device's context and launching its functions on torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.errors import KernelUnavailable

Size = tuple[int, int, int]
POINTER, INT32, FLOAT32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
BY_VALUE = None  # the type of an argument that brings its own bytes, such as a tensor map


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a cubin, loaded on one device.

    types          the ctypes type of each argument, in order; BY_VALUE for objects of cuda.bindings
    shared_bytes   dynamic shared memory of each block
    stream_of      device index -> the handle of torch's current stream, as Triton's launcher asks for it
    """

    handle: Any
    launch: Any
    device: int
    types: tuple[Any, ...]
    shared_bytes: int
    stream_of: Callable[[int], int]

    def __call__(self, grid: Size, block: Size, arguments: tuple[Any, ...]) -> None:
        """Launch on the current stream of the function's device; nothing waits for it. Safe while a graph is captured.

        arguments   tensors as their data_ptr(), numbers as int or float
        errors      KernelUnavailable with the driver's own name of the error
        """
        stream = self.stream_of(self.device)
        (status,) = self.launch(self.handle, *grid, *block, self.shared_bytes, stream, (arguments, self.types), 0)
        if status:
            raise KernelUnavailable(f"cuLaunchKernel: grid {grid}, block {block}, device {self.device}: {status.name}")


def load_function(cubin: bytes, name: str, types: tuple[Any, ...], shared_bytes: int, device: int) -> Function:
    """Load a cubin on a device and look up one of its functions. The module stays loaded as long as the process lives.

    device   index of the torch device; its primary context is the one that torch uses
    errors   KernelUnavailable without cuda-bindings, for a cubin of another architecture, an unknown name, or more
             shared memory than the device has
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelUnavailable(f"{name}: needs the package cuda-bindings: {error}") from error
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the context
        module = _checked(driver.cuModuleLoadData(cubin), f"{name}: cuModuleLoadData on device {device}")
        handle = _checked(driver.cuModuleGetFunction(module, name.encode()), f"{name}: cuModuleGetFunction")
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(
            driver.cuFuncSetAttribute(handle, limit, shared_bytes), f"{name}: {shared_bytes} bytes of shared memory"
        )
    return Function(handle, driver.cuLaunchKernel, device, types, shared_bytes, torch._C._cuda_getCurrentRawStream)


def _checked(answer: tuple[Any, ...], what: str) -> Any:
    status, *values = answer
    if int(status):
        raise KernelUnavailable(f"{what}: {status.name}")
    return values[0] if values else None
