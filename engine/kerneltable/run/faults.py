"""What a failure means: a broken kernel, memory that ran out, another's graph capture, a lost device. Only decides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

import torch

STICKY = {
    214: "uncorrectable ECC error",
    220: "uncorrectable NVLink error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
}
"""Errors after which every call on the device's context fails until the process ends; source: CUDA driver, CUresult."""

STICKY_NAMES = (
    "ECC_UNCORRECTABLE",
    "NVLINK_UNCORRECTABLE",
    "ILLEGAL_ADDRESS",
    "LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "HARDWARE_STACK_ERROR",
    "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS",
    "INVALID_ADDRESS_SPACE",
    "INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "hipErrorIllegalAddress",
    "hipErrorLaunchFailure",
)
"""What the driver API calls the same errors."""

CAPTURE = {
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
    902: "operation would result in a merge of separate capture sequences",
    903: "capture was not ended in the same stream as it began",
    904: "capturing stream has unjoined work",
    905: "dependency created on uncaptured work in another stream",
    906: "operation would make the legacy stream depend on a capturing blocking stream",
    907: "operation not permitted on an event last recorded in a capturing stream",
    908: "attempt to terminate a thread-local capture sequence from another thread",
}
"""What a CUDA graph capture forbids, in its default mode to every thread; source: CUDA driver, CUresult."""

CAPTURE_NAMES = ("STREAM_CAPTURE_", "CUDA_ERROR_CAPTURED_EVENT", "ErrorStreamCapture", "ErrorCapturedEvent")
"""What the names of these errors have in common, in the driver API and the runtime, CUDA and HIP."""

FROM_DEVICE = re.compile(r"(CUDA|HIP)( driver)? error|Triton Error \[(CUDA|HIP)\]|cudaError|hipError|CUDA_ERROR_")
"""Texts of torch, Triton and the driver; the bare phrase "misaligned address" could come from any check on the host."""

OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP) error: out of memory|\[(CUDA|HIP)\]: out of memory|CUDA_ERROR_OUT_OF_MEMORY|hipErrorOutOfMemory|"
    r"(CUBLAS|HIPBLAS)_STATUS_ALLOC_FAILED|out of memory\. Tried to allocate|"
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
)
"""Memory that ran out. Triton's "out of resource: shared memory" is not: that kernel never fits."""

LONGEST_REASON = 300


class Meaning(Enum):
    """What a failure says, and so what is done.

    KERNEL  this kernel does not work here: it is set aside, the next one takes over
    MEMORY  nothing is wrong with the kernel: unused memory is given back, it is tried once more, then it is an error
    CAPTURE nothing is wrong with the kernel: a CUDA graph capture forbade what it did, which may be another thread's
    LOST    the device is gone: DeviceLost at once, nothing else is tried on it
    """

    KERNEL = "kernel"
    MEMORY = "memory"
    CAPTURE = "capture"
    LOST = "lost"


def meaning_of(error: BaseException) -> Meaning:
    """Read a failure, and the errors that it was raised from, by type, code and text.

    What was being handled when it was raised does not count: that may be another device's error, in a caller's hands.
    """
    chain = list(_chain(error))
    if any(_is_one_of(link, STICKY, STICKY_NAMES) for link in chain):
        return Meaning.LOST
    if any(_is_one_of(link, CAPTURE, CAPTURE_NAMES) for link in chain):
        return Meaning.CAPTURE
    if any(isinstance(link, torch.OutOfMemoryError) or OUT_OF_MEMORY.search(_text(link)) for link in chain):
        return Meaning.MEMORY
    return Meaning.KERNEL


def reason_of(fault: BaseException | str) -> str:
    """A failure in one line of at most LONGEST_REASON characters."""
    if isinstance(fault, str):
        return fault
    text = " ".join(_text(fault).split())
    name = type(fault).__name__
    return (f"{name}: {text}" if text else name)[:LONGEST_REASON]


def form_fault(out: object, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with the form of a result that should be [m, n]; None when nothing is."""
    if not isinstance(out, torch.Tensor):
        return f"the result must be a tensor; found {type(out).__name__}"
    if tuple(out.shape) != shape:
        return f"the result must be {list(shape)}; found {list(out.shape)}"
    if out.dtype is not dtype:
        return f"the result must be {dtype}; found {out.dtype}"
    if out.device != device:
        return f"the result must be on {device}; found {out.device}"
    if out.requires_grad:
        return "the result must be detached; found one that requires a gradient"
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return "the result must be a plain tensor; found one of torch.inference_mode, which no gradient may pass"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, newest first, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of a foreign library may not even print
        return ""


def _is_one_of(error: BaseException, codes: Mapping[int, str], names: Sequence[str]) -> bool:
    """Whether a device said so, by code, in words or by name."""
    if isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) in codes:
        return True
    text = _text(error)
    if not FROM_DEVICE.search(text):
        return False
    return any(phrase in text for phrase in codes.values()) or any(name in text for name in names)
