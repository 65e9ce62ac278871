"""Loading a cubin into a device's context and launching its functions on torch's current stream.

A launch is one call of the driver's cuLaunchKernelEx through ctypes. What the driver reads lies in a frame: the launch
configuration, a cell of eight bytes for each argument, and the table of their addresses. The driver has copied all of
it when it returns, so a frame is used again; threads that launch at the same time have a frame each.

A function that says `early` starts while the kernel before it on the stream still runs, once every block of that one
has called let_next_start() or ended. What its device code owes for that stands in csrc/include/overlap.cuh. What the
kernel on this side owes: the weights and scales that the device code reads first have reached the device when packing
ends (it waits for the stream), and nothing that is written for a call (input, its scales, a converted bias) is among
them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from struct import Struct
from types import MappingProxyType
from typing import Any

import torch

from kerneltable.errors import KernelUnavailable

Size = tuple[int, int, int]
POINTER, INT32, INT64, FLOAT32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
BY_VALUE = None
"""The type of an argument that is passed whole and named by its address: a TensorMap. These come first."""

CELLS = MappingProxyType({POINTER: "Q", INT32: "i4x", INT64: "q", FLOAT32: "f4x"})
CONFIGURATION = "=7I4xQQI4x"
"""CUlaunchConfig: grid, block, bytes of shared memory, stream, attributes and their number; source: CUDA driver API."""

EARLY = "=I4xi60x"
"""CUlaunchAttribute with a number as its value: which one, and the number; source: CUDA driver API."""

EARLY_ID = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION; its value 1 allows an early start."""

FIRST_CELL = Struct(CONFIGURATION).size
OTHER_CONTEXT = frozenset({201, 400})
"""CUDA_ERROR_INVALID_CONTEXT and CUDA_ERROR_INVALID_HANDLE: this thread's current context is not the function's."""

LAUNCH_SYMBOL, LAUNCH_SINCE = b"cuLaunchKernelEx", 11060


@dataclass(frozen=True, slots=True, eq=False)
class TensorMap:
    """A CUtensorMap: where it lies, and what keeps it there."""

    address: int
    content: Any


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The memory of one launch.

    fill        writes grid, block, shared bytes, stream, attributes, the cells, the addresses of tensor maps
    at          address of the configuration
    attributes  address of the launch attributes (0: none), and their number
    table_at    address of the table: first the tensor maps, then the cells
    memory      configuration, cells, table and attributes
    """

    fill: Callable[..., None]
    at: int
    attributes: tuple[int, int]
    table_at: int
    memory: Any


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of a cubin, loaded on one device.

    handle         its CUfunction
    launch         cuLaunchKernelEx
    types          the type of each argument, in order: BY_VALUE ones first, then the others
    shared_bytes   dynamic shared memory of each block
    stream_of      device index -> the handle of torch's current stream, as Triton's launcher asks for it
    early          it starts while the kernel before it still runs, see above
    free           frames that no thread uses at the moment
    """

    handle: int
    launch: Callable[[int, int, int, None], int]
    device: int
    types: tuple[Any, ...]
    shared_bytes: int
    stream_of: Callable[[int], int]
    early: bool = False
    free: list[Frame] = field(default_factory=list)

    def __call__(self, grid: Size, block: Size, arguments: tuple[float, ...], maps: tuple[int, ...] = ()) -> None:
        """Launch on the current stream of the function's device; nothing waits for it. Safe while a graph is captured.

        arguments   all but the tensor maps: tensors as their data_ptr(), numbers as int or float
        maps        addresses of TensorMaps, in order; the caller holds them until this returns
        errors      KernelUnavailable with the driver's own name of the error
        """
        try:
            frame = self.free.pop()
        except IndexError:
            frame = self.frame()
        stream = self.stream_of(self.device)
        frame.fill(*grid, *block, self.shared_bytes, stream, *frame.attributes, *arguments, *maps)
        try:
            status = self.launch(frame.at, self.handle, frame.table_at, None)
            if status:
                self.again(frame, status, grid, block)
        finally:
            self.free.append(frame)

    def again(self, frame: Frame, status: int, grid: Size, block: Size) -> None:
        """After a launch that ended with a status other than 0: once more if the thread's context was another device's.

        grid, block   the frame's own, for the message
        errors        as __call__
        """
        if status in OTHER_CONTEXT:
            with own_context(self.device):
                status = self.launch(frame.at, self.handle, frame.table_at, None)
        if status:
            raise KernelUnavailable(
                f"cuLaunchKernelEx: grid {grid}, block {block}, device {self.device}: {error_name(status)}"
            )

    def frame(self, more: int = 0) -> Frame:
        """New memory for a launch, with some words more at its end."""
        whole = sum(kind is BY_VALUE for kind in self.types)
        cells = self.types[whole:]
        layout = Struct(CONFIGURATION + "".join(CELLS[kind] for kind in cells) + "Q" * whole)
        words = layout.size // 8
        end = words + len(cells)
        memory = (ctypes.c_uint64 * (end + Struct(EARLY).size // 8 * self.early + more))()
        at = ctypes.addressof(memory)
        memory[words:end] = [at + FIRST_CELL + 8 * i for i in range(len(cells))]
        if self.early:
            Struct(EARLY).pack_into(memory, 8 * end, EARLY_ID, 1)
        attributes = (at + 8 * end, 1) if self.early else (0, 0)
        return Frame(partial(layout.pack_into, memory, 0), at, attributes, at + 8 * (words - whole), memory)


def load_function(
    cubin: bytes, name: str, types: tuple[Any, ...], shared_bytes: int, device: int, *, early: bool = False
) -> Function:
    """Load a cubin on a device and look up one of its functions. The module stays loaded as long as the process lives.

    device   index of the torch device; its primary context is the one that torch uses
    early    whether its launches may start while the kernel before them still runs
    errors   KernelUnavailable without cuda-bindings, for a cubin of another architecture, an unknown name, or more
             shared memory than the device has
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelUnavailable(f"{name}: needs the package cuda-bindings: {error}") from error
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the context
        module = checked(driver.cuModuleLoadData(cubin), f"{name}: cuModuleLoadData on device {device}")
        handle = checked(driver.cuModuleGetFunction(module, name.encode()), f"{name}: cuModuleGetFunction")
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(
            driver.cuFuncSetAttribute(handle, limit, shared_bytes), f"{name}: {shared_bytes} bytes of shared memory"
        )
    stream_of = torch._C._cuda_getCurrentRawStream
    return Function(int(handle), driver_launch(), device, types, shared_bytes, stream_of, early)


@contextmanager
def own_context(device: int) -> Iterator[None]:
    """Make a device's primary context this thread's current one.

    A thread that had none keeps it, as it would after any call of the CUDA runtime; else the one before comes back.
    Unlike torch.cuda.device this works in a thread that has not used CUDA yet, and while a graph is captured.
    errors   KernelUnavailable with the driver's own name of the error
    """
    from cuda.bindings import driver

    what = f"the context of device {device}"
    place = checked(driver.cuDeviceGet(device), what)
    context = checked(driver.cuDevicePrimaryCtxRetain(place), what)
    alone = not int(checked(driver.cuCtxGetCurrent(), what))
    checked(driver.cuCtxPushCurrent(context), what)
    try:
        yield
    finally:
        if not alone:
            driver.cuCtxPopCurrent()
            driver.cuDevicePrimaryCtxRelease(place)


@cache
def driver_launch() -> Callable[[int, int, int, None], int]:
    """cuLaunchKernelEx of the driver that cuda-bindings uses: configuration, function, addresses of arguments, None.

    returns   a CUresult
    errors    KernelUnavailable from a driver before CUDA 11.6
    """
    from cuda.bindings import driver

    legacy = driver.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_LEGACY_STREAM  # torch's stream 0 is that one
    found = driver.cuGetProcAddress(LAUNCH_SYMBOL, LAUNCH_SINCE, int(legacy))
    status, address = found[0], found[1]
    if int(status) or not address:
        raise KernelUnavailable(f"the CUDA driver has no {LAUNCH_SYMBOL.decode()}: {status.name}; update the driver")
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return kind(int(address))


def error_name(status: int) -> str:
    """What the driver calls a CUresult."""
    from cuda.bindings import driver

    try:
        return str(driver.CUresult(status).name)
    except ValueError:
        return f"CUresult {status}"


def checked(answer: tuple[Any, ...], what: str) -> Any:
    status, *values = answer
    if int(status):
        raise KernelUnavailable(f"{what}: {status.name}")
    return values[0] if values else None
