"""Layers with stand-in kernels, for tests of what torch does to modules."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from kerneltable.kernels import registry
from kerneltable.run.ledger import shared_ledger
from kerneltable.run.linear import QuantLinear
from kerneltable.table import load_table

N, K = 192, 256
BY_ROWS = (
    "override: 1\nkernels:\n  cpu_fp8: {accepts: {m: {max: 4}}}\ndisable: [{kernel: cpu_fp8_amx, reason: a test}]\n"
)
MARKS = {"cpu_fp8": 1.0, "reference": 2.0}


@dataclass
class Stand:
    """What the stand-in kernels were asked: (kernel, shape of x) of each call, and how often each was packed."""

    packed: list[str] = field(default_factory=list)
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def stand_in(monkeypatch, marks=None) -> Stand:
    """Every kernel of the registry fills its result with its own mark and counts; nothing checks its numbers."""
    marks = MARKS if marks is None else marks
    seen = Stand()

    def load(kernel):
        class Kernel:
            def __init__(self, problem, *, weight, **rest):
                with seen.lock:
                    seen.packed.append(kernel)
                self.workspace = torch.zeros(problem.n)
                self.problem = problem

            def __call__(self, x, bias):
                seen.calls.append((kernel, tuple(x.shape)))
                self.workspace.fill_(marks.get(kernel, 9.0))  # in place, as kernels use a workspace
                dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[self.problem.output]
                return self.workspace.to(dtype).expand(x.shape[0], -1).contiguous()

        return Kernel

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(shared_ledger(), "verify", "never")
    return seen


def tensors(n: int = N, k: int = K, seed: int = 0, scale: str = "weight_scale") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    return {"weight": weight, scale: torch.rand(-(-n // 128), -(-k // 128), generator=generator) + 0.5}


def layer(*, override: str | None = None, bias: bool = False, seed: int = 0, **options) -> QuantLinear:
    """A block-scaled layer [192, 256] of the shipped table; the reference unless options or an override differ."""
    table = load_table(overrides=[] if override is None else [("test", override)])
    if override is None:
        options = {"kernel": "reference"} | options
    added = torch.linspace(-1, 1, N) if bias else None
    return QuantLinear.from_tensors("fp8_block_w8a8", tensors(seed=seed), added, table, **options)


def inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
