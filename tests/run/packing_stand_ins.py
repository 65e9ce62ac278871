"""A packing stand-in for cpu_fp8, in the tiles of the shipped CUDA kernels, and layers that it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps

import torch

from kerneltable.kernels import registry
from kerneltable.kernels.hopper_w8a16 import Kernel as Hopper
from kerneltable.ops.fragment_tiles import pack
from kerneltable.run.linear import QuantLinear
from kerneltable.run.oracle import quantizes_input, reference64
from kerneltable.table import load_table

N, K = 80, 160
TILES = (
    "override: 1\nkernels:\n  cpu_fp8: {unsafe: true, reason: a test, layout: tiles}\n"
    "disable: [{kernel: cpu_fp8_amx, reason: a test}]\n"
)
"""The row of the stand-in says that it packs; `reference`, the next of each route, takes the checkpoint's tensors."""


class Tiles:
    """Packs the weight, and the exponents of mxfp8, as hopper_w8a16 does; computes from the packed copy, in float64."""

    unpack = staticmethod(Hopper.unpack)

    def __init__(self, problem, *, weight, weight_scale, input_scale=None, input_scale_ub=None, packed=None):
        exponents = weight_scale.view(torch.uint8) if problem.scheme == "mxfp8" else None
        self.packed = pack(weight.view(torch.uint8), exponents) if packed is None else packed
        self.problem = problem
        kept = {"weight_scale": None if exponents is not None else weight_scale, "input_scale": input_scale}
        self.kept = kept | {"input_scale_ub": input_scale_ub}

    def __call__(self, x, bias):
        made = self.unpack(self.problem, self.packed)
        made["weight"] = made["weight"].view(torch.float8_e4m3fn)
        tensors = {name: tensor for name, tensor in (self.kept | made).items() if tensor is not None}
        quantizes = quantizes_input(self.problem, "native")
        out, _ = reference64(self.problem, tensors, x, bias, quantizes, range(self.problem.n))
        return out.to({"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[self.problem.output])


@dataclass
class Loaded:
    """Kernel id -> how often it was constructed."""

    packed: dict[str, int] = field(default_factory=dict)


def packing(monkeypatch, kind: type = Tiles) -> Loaded:
    """Let cpu_fp8 be a stand-in, and count what is packed; other kernels are the project's own."""
    own, seen = registry.load, Loaded()

    def load(kernel):
        adapter = kind if kernel == "cpu_fp8" else own(kernel)

        class Kernel(adapter):
            @wraps(adapter.__init__)
            def __init__(self, problem, **arguments):
                seen.packed[kernel] = seen.packed.get(kernel, 0) + 1
                super().__init__(problem, **arguments)

        return Kernel

    monkeypatch.setattr(registry, "load", load)
    return seen


def given(scheme: str = "w8a16_fp8", n: int = N, k: int = K, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every finite code, both zeros among them, in a checkpoint's tensors with scales of channels, or of 32 columns."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (n, k), generator=generator, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    scale = torch.rand(n, 1, generator=generator) + 0.5
    if scheme == "mxfp8":
        scale = torch.randint(115, 122, (n, k // 32), generator=generator, dtype=torch.uint8)
    return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": scale}


def once(tensors=None, scheme: str = "w8a16_fp8", more: str = "", **options) -> QuantLinear:
    """A layer of the stand-in that holds its weights once."""
    table = load_table(overrides=[("tiles", TILES + more)])
    tensors = given(scheme) if tensors is None else tensors
    return QuantLinear.from_tensors(scheme, tensors, table=table, device="cpu", **{"keep_checkpoint": False} | options)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every byte, NaN and -0 included."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
