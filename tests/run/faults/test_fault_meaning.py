"""What an error says: a broken kernel, memory that ran out, a graph capture, or a device that is gone."""

from __future__ import annotations

import pytest
import torch

from kerneltable.run.faults import Meaning, meaning_of, reason_of
from kerneltable.run.ledger import BANDS, band_of


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...", Meaning.LOST),
        ("Triton Error [CUDA]: misaligned address", Meaning.LOST),
        ("cuLaunchKernel: grid (1, 1, 1): CUDA_ERROR_ILLEGAL_INSTRUCTION", Meaning.LOST),
        ("CUDA error: device-side assert triggered", Meaning.LOST),
        ("HIP error: unspecified launch failure", Meaning.LOST),
        ("misaligned address: x must be a multiple of 16 bytes", Meaning.KERNEL),
        ("an illegal memory access was encountered in the list of options", Meaning.KERNEL),
        ("CUDA error: no kernel image is available for execution on the device", Meaning.KERNEL),
        ("CUDA error: invalid configuration argument", Meaning.KERNEL),
        ("out of resource: shared memory, Required: 300000, Hardware limit: 232448", Meaning.KERNEL),
        ("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might", Meaning.CAPTURE),
        ("CUDA error: operation failed due to a previous error during capture", Meaning.CAPTURE),
        ("Triton Error [CUDA]: operation not permitted when stream is capturing", Meaning.CAPTURE),
        ("Search for `cudaErrorStreamCaptureImplicit' in https://docs.nvidia.com/", Meaning.CAPTURE),
        ("cuModuleLoadData on device 0: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", Meaning.CAPTURE),
        ("HIP error: operation not permitted on an event last recorded in a capturing stream", Meaning.CAPTURE),
        ("this kernel: operation not permitted when stream is capturing", Meaning.KERNEL),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", Meaning.MEMORY),
        ("CUDA error: out of memory", Meaning.MEMORY),
        ("cuModuleLoadData on device 0: CUDA_ERROR_OUT_OF_MEMORY", Meaning.MEMORY),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", Meaning.MEMORY),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes", Meaning.MEMORY),
    ],
)
def test_an_error_is_read_by_its_text(text, meaning):
    assert meaning_of(RuntimeError(text)) is meaning


def test_an_error_is_read_through_its_cause_but_not_through_what_a_caller_handles():
    sticky = RuntimeError("CUDA error: unspecified launch failure")
    caused, handled = ValueError("wrapped"), ValueError("another")
    caused.__cause__, handled.__context__ = sticky, sticky
    assert meaning_of(caused) is Meaning.LOST
    assert meaning_of(handled) is Meaning.KERNEL
    assert meaning_of(torch.OutOfMemoryError("any text")) is Meaning.MEMORY
    caused.__cause__.__cause__ = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    assert meaning_of(caused) is Meaning.LOST
    assert meaning_of(sticky.__cause__) is Meaning.CAPTURE


def test_the_code_of_an_accelerator_error_counts_whatever_its_text():
    error = torch.AcceleratorError("something")
    error.error_code = 719
    assert meaning_of(error) is Meaning.LOST
    for code in (900, 908):
        error.error_code = code
        assert meaning_of(error) is Meaning.CAPTURE
    error.error_code = 1
    assert meaning_of(error) is Meaning.KERNEL


def test_a_reason_is_one_short_line_even_if_the_error_cannot_print():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert reason_of(MuteError()) == "MuteError"
    assert reason_of(ValueError("a\nb" + "c" * 1000)).startswith("ValueError: a bc")
    assert len(reason_of(ValueError("c" * 1000))) == 300


def test_bands_of_rows_end_where_they_say():
    assert [band_of(m) for m in (1, 2, 16, 17, 128, 129, 1024, 1025, 10**6)] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(BANDS) == 4
