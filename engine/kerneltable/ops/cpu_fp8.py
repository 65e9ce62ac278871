"""The CPU product of plain or quantized inputs with FP8 weights: csrc/cpu/fp8_linear.cpp behind a Python call."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch

from kerneltable.errors import KernelInputError, KernelUnavailable
from kerneltable.ops.cpp import load_library

SOURCE = "cpu/fp8_linear.cpp"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INPUTS = {"none": 0, "group": 1, "tensor": 2, "static": 3, "mx": 4}
PATHS = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3, "vbmi": 4, "amx": 5}


class _Job(ctypes.Structure):
    """struct kt_fp8_job of csrc/include/cpu_fp8_job.h, field by field; the library is asked for its size."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("m", "n", "k", "x_stride", "weight_stride", "scale_stride")),
        *((name, ctypes.c_int64) for name in ("out_stride", "block_n", "block_k", "input_group")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "scale", "bias", "out")),
        *((name, ctypes.c_float) for name in ("input_scale", "input_scale_ub")),
        *((name, ctypes.c_int32) for name in ("x_type", "out_type", "scale_type", "input", "path", "threads")),
    )


@dataclass(frozen=True, slots=True)
class Weight:
    """FP8 weights as they are multiplied.

    codes   [n, k] float8_e4m3fn, columns contiguous
    scale   [rows, columns] float32, or uint8 holding e8m0, contiguous; one covers block[0] x block[1] weights
    """

    codes: torch.Tensor
    scale: torch.Tensor
    block: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How inputs are quantized before the product.

    mode    none | group (f32 scale a group) | tensor (one dynamic f32 scale) | static | mx (e8m0 scale a group)
    group   columns that share a scale, for group and mx
    scale   the static scale
    upper   the largest dynamic scale of group and tensor; infinity when there is no bound
    """

    mode: str = "none"
    group: int = 1
    scale: float = 1.0
    upper: float = math.inf


def library() -> ctypes.CDLL:
    """The compiled code. errors: KernelUnavailable if it cannot be had on this machine."""
    loaded = load_library(SOURCE)
    loaded.kt_fp8_job_bytes.restype = ctypes.c_int64
    if loaded.kt_fp8_job_bytes() != ctypes.sizeof(_Job):
        raise KernelUnavailable(
            f"{SOURCE}: kt_fp8_job has {loaded.kt_fp8_job_bytes()} bytes; wanted {ctypes.sizeof(_Job)}, as here"
        )
    return loaded


def has_path(path: str) -> bool:
    """True when this machine can run the instruction path: auto, portable, avx2, avx512, vbmi (AVX-512 VBMI) or amx.

    auto is the best of them but amx, whose sums are in another order. What tiles cannot take exactly, amx leaves to
    vbmi: other blocks of scales, and rows or columns whose products might be subnormal, infinite or NaN.
    """
    return bool(library().kt_fp8_has_path(PATHS[path]))


class Product:
    """A weight and what is done to its inputs, checked and described to the C code once for all calls."""

    def __init__(self, weight: Weight, quantization: Quantization = Quantization(), *, path: str = "auto") -> None:
        """Keep them.

        path      auto, or an instruction path of has_path
        errors    KernelInputError for a tensor that does not fit, KernelUnavailable without compiled code
        """
        _check_weight(weight)
        weight = Weight(weight.codes.detach(), weight.scale.detach(), weight.block)  # whatever is done through .data
        self.weight, self.quantization, self.path = weight, quantization, path
        library()
        self._at = weight.codes.data_ptr(), weight.scale.data_ptr()
        self._bytes = _bytes_behind(weight)
        self._n, self._k = weight.codes.shape
        self._fixed = bytes(
            _Job(
                n=self._n, k=self._k, weight_stride=weight.codes.stride(0), scale_stride=weight.scale.shape[1],
                out_stride=self._n, block_n=weight.block[0], block_k=weight.block[1], input_group=quantization.group,
                input_scale=quantization.scale, input_scale_ub=quantization.upper, path=PATHS[path],
                scale_type=int(weight.scale.dtype == torch.uint8), input=INPUTS[quantization.mode],
            )
        )  # fmt: skip

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, threads: int | None = None
    ) -> torch.Tensor:
        """What `linear` does."""
        self._check(x, bias, out)
        job = _Job.from_buffer_copy(self._fixed)
        job.m, job.x_stride = x.shape[0], x.stride(0)
        job.weight, job.scale = at = self.weight.codes.data_ptr(), self.weight.scale.data_ptr()
        if at != self._at:
            self._check_moved()
        job.x, job.out, job.bias = x.data_ptr(), out.data_ptr(), None if bias is None else bias.data_ptr()
        job.x_type, job.out_type = TYPES[x.dtype], TYPES[out.dtype]
        job.threads = torch.get_num_threads() if threads is None else threads
        answer = load_library(SOURCE).kt_fp8_linear(ctypes.byref(job))
        if answer == 1:
            raise MemoryError(f"cpu_fp8: no memory to pack inputs {list(x.shape)}")
        if answer:
            raise KernelUnavailable(f"cpu_fp8: instruction path {self.path} is not of this machine; take auto")
        return out

    def _check_moved(self) -> None:
        """KernelInputError when the weight is elsewhere in memory by now, and part of its memory is gone."""
        found = _bytes_behind(self.weight)
        if found[0] < self._bytes[0] or found[1] < self._bytes[1]:
            raise KernelInputError(
                f"cpu_fp8: weight and weight_scale must keep the {self._bytes} bytes of their storages; found {found}: "
                "the memory was freed; put it back, and pack again"
            )

    def _check(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """What the C code relies on and cannot see for itself, as far as it may change from call to call."""
        n, k = self._n, self._k
        if x.dim() != 2 or x.shape[1] != k or x.dtype not in TYPES:
            raise _unfit("x", f"[m, {k}] f32, bf16 or f16", x)
        if k > 1 and x.stride(1) != 1:
            raise _unfit("x", "contiguous columns", x)
        if out.shape != (x.shape[0], n) or out.dtype not in TYPES:
            raise _unfit("out", f"[{x.shape[0]}, {n}] f32, bf16 or f16", out)
        if not out.is_contiguous():
            raise _unfit("out", "contiguous", out)
        if bias is not None and (bias.shape != (n,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
            raise _unfit("bias", f"[{n}] f32, contiguous", bias)
        for tensor in (x, self.weight.codes, self.weight.scale, out, bias):
            if tensor is not None and not tensor.is_cpu:
                raise KernelInputError(
                    f"cpu_fp8: every tensor must be on the CPU; found one on {tensor.device}; move it there"
                )


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    quantization: Quantization = Quantization(),
    path: str = "auto",
    threads: int | None = None,
) -> torch.Tensor:
    """out = quantized(x) @ (codes * scale).T + bias, summed in float32; returns out.

    x         [m, k] float32, bfloat16 or float16, columns contiguous, any row stride
    bias      [n] float32, contiguous, or None
    out       [m, n] float32, bfloat16 or float16, contiguous; each bit of it depends on its own row of x alone
              (with mode tensor, on all of x) and on the path (avx512 and vbmi agree), never on m or on threads
    threads   how many share the work; None: torch.get_num_threads()
    errors    KernelInputError for a tensor that does not fit, KernelUnavailable for a path that is not of this machine,
              MemoryError
    """
    return Product(weight, quantization, path=path)(x, bias, out, threads)


def _check_weight(weight: Weight) -> None:
    """Everything of it that the C code relies on and cannot see for itself, but for where it lies."""
    codes, scale = weight.codes, weight.scale
    n, k = codes.shape
    wanted = [-(-n // weight.block[0]), -(-k // weight.block[1])]
    checks = (
        (codes.dtype == torch.float8_e4m3fn, "weight", "float8_e4m3fn", codes),
        (k <= 1 or codes.stride(1) == 1, "weight", "contiguous columns", codes),
        (scale.dtype in (torch.float32, torch.uint8), "weight_scale", "f32, or uint8 of e8m0", scale),
        (list(scale.shape) == wanted, "weight_scale", f"{wanted}", scale),
        (scale.is_contiguous(), "weight_scale", "contiguous", scale),
    )
    for holds, name, form, found in checks:
        if not holds:
            raise _unfit(name, form, found)


def _bytes_behind(weight: Weight) -> tuple[int, int]:
    """Bytes of the storages that the codes and the scale lie in."""
    return weight.codes.untyped_storage().nbytes(), weight.scale.untyped_storage().nbytes()


def _unfit(name: str, wanted: str, found: torch.Tensor) -> KernelInputError:
    return KernelInputError(
        f"cpu_fp8: {name} must be {wanted}; found {list(found.shape)} {found.dtype}, strides {found.stride()}"
    )
