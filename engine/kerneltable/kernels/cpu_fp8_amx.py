"""cpu_fp8_amx: cpu_fp8 with AMX tiles of bf16, for more rows than memory keeps waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneltable.errors import KernelUnavailable
from kerneltable.kernels import cpu_fp8
from kerneltable.ops.cpu_fp8 import has_path

if TYPE_CHECKING:
    import torch

    from kerneltable.model import Problem


class Kernel:
    """A bound layer. The weight is the checkpoint's own tensor; only scales are copied."""

    def __init__(
        self,
        problem: Problem,
        *,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        input_scale_ub: torch.Tensor | None = None,
    ) -> None:
        """Load the compiled code and keep the layer; arguments and errors are those of cpu_fp8.

        errors  KernelUnavailable also where the compiler knows no tiles, or Linux does not let this process use them
        """
        if not has_path("amx"):
            raise KernelUnavailable(
                "cpu_fp8_amx: tiles cannot be used; wanted a compiled library with AMX (GCC 11 or later on Linux) and "
                "the permission of Linux for this process; cpu_fp8 needs neither"
            )
        self._inner = cpu_fp8.Kernel(
            problem,
            weight=weight,
            weight_scale=weight_scale,
            input_scale=input_scale,
            input_scale_ub=input_scale_ub,
            path="amx",
        )

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ dequantized(weight).T + bias; x [m, k], bias [n] or None, returns [m, n] in the output dtype."""
        return self._inner(x, bias)
