"""A registry of fake kernels that compute right numbers until a fault is armed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kerneltable.errors import (
    KernelInputError,
    KernelTableError,
    KernelUnavailable,
    ShapeUnavailable,
    WeightsRefused,
)
from kerneltable.kernels import reference
from kerneltable.model import Problem

ROUTE = ("torch_scaled_mm_block", "triton_fp8_block", "reference")
ORDER = f"override: 1\nroutes:\n  fp8_block_w8a8: {{cuda: {{order: {{replace: [{', '.join(ROUTE)}]}}}}}}\n"
N, K = 32, 128
LAYER = Problem("fp8_block_w8a8", n=N, k=K)


def layer_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.rand(1, 1, generator=generator) + 0.5}


def rows(m: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(m, K, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def raising(error: type[BaseException], text: str = "injected") -> Callable[..., None]:
    def act(*_: Any) -> None:
        raise error(text)

    return act


def half_repacked(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"].view(torch.uint8)[: N // 2].zero_()
    raise RuntimeError("failed in the middle of packing")


def repacked(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight_scale"].mul_(2)


def zeroed(x: torch.Tensor) -> None:
    x.zero_()
    raise RuntimeError("failed after it wrote to x")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where (load, pack, call, result), and what must follow.

    follows   next (the next kernel computes), same (the same kernel computes), memory, capture, lost, passes (raised)
    silent    later calls show it only when every call is checked
    """

    name: str
    stage: str
    act: Callable[..., Any]
    follows: str = "next"
    silent: bool = False
    times: int = 10**9


def _lost(code: int, text: str) -> Fault:
    return Fault(f"sticky {code}", "call", raising(torch.AcceleratorError, f"CUDA error: {text}"), "lost")


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
FAULTS = (
    Fault("import error", "load", raising(ImportError, "libexample.so: undefined symbol")),
    Fault("missing library", "load", raising(OSError, "libexample.so: cannot open shared object file")),
    Fault("missing op", "load", raising(AttributeError, "'_OpNamespace' '_C' object has no attribute 'gemm'")),
    Fault("not registered", "load", raising(KernelTableError, "kernel is not registered")),
    Fault("constructor raises", "pack", raising(RuntimeError)),
    Fault("constructor gets no compiler", "pack", raising(KernelUnavailable, "no C++ compiler was found")),
    Fault("constructor refuses the weights", "pack", raising(WeightsRefused, "the weight holds NaN codes")),
    Fault("constructor refuses the shape", "pack", raising(ShapeUnavailable, "wants 300000 bytes of shared memory")),
    Fault("constructor asserts", "pack", raising(AssertionError, "")),
    Fault("half repacked in place", "pack", half_repacked),
    Fault("repacked in place", "pack", repacked),
    Fault("raises", "call", raising(RuntimeError)),
    Fault("refuses its input", "call", raising(KernelInputError, "wanted contiguous")),
    Fault("no image", "call", raising(RuntimeError, "CUDA error: no kernel image is available for execution")),
    Fault("no shared memory", "call", raising(RuntimeError, "out of resource: shared memory, Required: 300000")),
    Fault("compile error", "call", raising(KernelUnavailable, "ptxas fatal: unresolved extern function")),
    Fault("host-side alignment", "call", raising(ValueError, "misaligned address: x must be a multiple of 16")),
    Fault("wrote to x and raised", "call", zeroed, silent=True),
    Fault("memory once", "call", raising(torch.OutOfMemoryError, FULL), "same", times=1),
    Fault("memory always", "call", raising(torch.OutOfMemoryError, FULL), "memory"),
    Fault("memory once while packing", "pack", raising(torch.OutOfMemoryError, FULL), "same", times=1),
    Fault("memory always while packing", "pack", raising(torch.OutOfMemoryError, FULL), "memory"),
    Fault("another thread captures", "call", raising(torch.AcceleratorError, CAPTURING), "capture"),
    Fault("another thread captures while packing", "pack", raising(RuntimeError, CAPTURING), "capture"),
    _lost(700, "an illegal memory access was encountered"),
    _lost(715, "an illegal instruction was encountered"),
    _lost(719, "unspecified launch failure"),
    Fault("interrupt", "call", raising(KeyboardInterrupt), "passes"),
    Fault("no memory of the host", "call", raising(MemoryError), "passes"),
    Fault("no result", "result", lambda out, x, kept: None),
    Fault("a list", "result", lambda out, x, kept: [out]),
    Fault("short of a column", "result", lambda out, x, kept: out[:, :-1]),
    Fault("one more dimension", "result", lambda out, x, kept: out[None]),
    Fault("wrong dtype", "result", lambda out, x, kept: out.float()),
    Fault("wrong device", "result", lambda out, x, kept: out.to("meta")),
    Fault("nan", "result", lambda out, x, kept: out.fill_(torch.nan), silent=True),
    Fault("one element", "result", lambda out, x, kept: out.index_fill_(1, torch.tensor([N - 1]), 1e4), silent=True),
    Fault("twice too large", "result", lambda out, x, kept: out * 2, silent=True),
    Fault("strided", "result", lambda out, x, kept: out.t().contiguous().t(), silent=True),
    Fault("follows a gradient", "result", lambda out, x, kept: out.requires_grad_(), silent=True),
    Fault("of inference mode", "result", torch.inference_mode()(lambda out, x, kept: out.clone()), silent=True),
    Fault("its workspace", "result", lambda out, x, kept: kept[: len(out)].copy_(out), silent=True),
    Fault("wrote to x", "result", lambda out, x, kept: (out, x.zero_())[0], silent=True),
)

NAMED = {fault.name: fault for fault in FAULTS}
RAISES, TWICE, LOST = NAMED["raises"], NAMED["twice too large"], NAMED["sticky 700"]


@dataclass
class Fakes:
    """Fake kernels by id: `load` stands in for the registry's. Faults act while `armed`."""

    faults: dict[str, Fault] = field(default_factory=dict)
    armed: bool = False
    loads: Counter[str] = field(default_factory=Counter)
    packs: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    acted: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def load(self, kernel: str) -> Any:
        self.loads[kernel] += 1
        self.act(kernel, "load")

        def construct(problem: Problem, *, weight: torch.Tensor, weight_scale: torch.Tensor, **_: Any) -> Any:
            self.packs[kernel] += 1
            self.act(kernel, "pack", {"weight": weight, "weight_scale": weight_scale})
            right = reference.Kernel(problem, weight=weight.clone(), weight_scale=weight_scale.clone())
            kept = torch.empty(64, N, dtype=torch.bfloat16)

            def call(x: torch.Tensor, bias: torch.Tensor | None) -> Any:
                self.calls[kernel] += 1
                self.act(kernel, "call", x)
                out = right(x, bias)
                fault = self.faults.get(kernel)
                wrong = self.armed and fault is not None and fault.stage == "result"
                return fault.act(out, x, kept) if wrong and fault is not None else out

            return call

        return construct

    def act(self, kernel: str, stage: str, *given: Any) -> None:
        fault = self.faults.get(kernel)
        if fault is None or not self.armed or fault.stage != stage:
            return
        with self.lock:
            due = self.acted[kernel] < fault.times
            self.acted[kernel] += 1
        if due:
            fault.act(*given)
