"""Run a layer on random inputs, hold it against the float64 reference, and time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kerneltable.errors import KernelTableError, NoKernelError
from kerneltable.formats import FORMATS
from kerneltable.model import Selection
from kerneltable.run.checkpoints.checkpoint import Checkpoint
from kerneltable.run.linear import QuantLinear
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64

WARM_UP = 2
REPEATS = 7


@dataclass(frozen=True, slots=True)
class Measured:
    """One layer that ran: its kernel, its largest error in units of the bound, and the median time of a call.

    selection     the choice for as many rows as were run
    weight_bytes  what the tensors of the checkpoint take that the layer holds, bias apart
    packed_bytes  what its kernels hold beside them
    kept          why tensors that were to be released are held; "": they are not, or that was not asked for
    """

    checkpoint: str
    name: str
    scheme: str
    n: int
    k: int
    kernel: str
    error_over_bound: float
    microseconds: float
    selection: Selection
    weight_bytes: int = 0
    packed_bytes: int = 0
    kept: str = ""

    @property
    def within(self) -> bool:
        """True when every element is within its bound."""
        return self.error_over_bound <= 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """One layer that could not run, the text that says why, and the selection that left it without a kernel, if any."""

    checkpoint: str
    name: str
    reason: str
    selection: Selection | None = None


def measure_checkpoint(
    linears: Checkpoint, label: str, m: int = 16, seed: int = 0, *, seen: Callable[[str], None] = lambda name: None
) -> tuple[list[Measured], list[Failed]]:
    """Run every linear of a checkpoint, one at a time, and those that no scheme covers as failures.

    m     rows of the random input
    seen  called with each layer's name before it runs
    """
    measured: list[Measured] = []
    failed = [Failed(label, name, reason) for name, reason in linears.refused.items()]
    for number, name in enumerate(linears):
        seen(name)
        try:
            measured.append(measure_layer(linears[name], name, label, m, seed + number))
        except NoKernelError as error:
            failed.append(Failed(label, name, str(error), error.selection))
        except KernelTableError as error:
            failed.append(Failed(label, name, str(error)))
    return measured, failed


def measure_layer(layer: QuantLinear, name: str, label: str = "", m: int = 16, seed: int = 0) -> Measured:
    """Run a layer on standard normal inputs [m, k] and compare each element with the float64 reference.

    returns   the largest error over its bound, and the median of a few calls in microseconds, device synchronized
    errors    those of calling the layer
    """
    problem = layer.selection.problem
    x = random_input(m, problem.k, problem.input, layer.place, seed)
    out = layer(x)
    kernel = layer.kernel_for(m)  # after the call: the one that computed it, should another have failed
    row = layer.table.kernels[kernel]
    reference, magnitude = reference64(problem, layer.tensors(), x, layer.bias, quantizes_input(problem, row.kind))
    error = error_over_bound(out, reference, magnitude, problem.k, problem.output, row.numerics.accumulator)
    microseconds = median_microseconds(lambda: layer(x), layer.place)
    given, packed = sum(tensor.nbytes for tensor in layer.held().values()), sum(layer.memory().values())
    what = (label, name, problem.scheme, problem.n, problem.k)
    return Measured(*what, kernel, error, microseconds, layer.selection_for(m), given, packed, layer.why_kept or "")


def random_input(m: int, k: int, input: str, device: torch.device, seed: int) -> torch.Tensor:
    """Standard normal [m, k] in an input dtype; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(m, k, generator=generator)
    return values.to(getattr(torch, FORMATS[input].torch_dtype)).to(device)


def median_microseconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median time of a call, after a warm-up, each one synchronized with the device."""
    synchronize = torch.get_device_module(device).synchronize
    times = []
    for number in range(WARM_UP + repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        if number >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)[len(times) // 2]
