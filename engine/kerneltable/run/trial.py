"""A kernel's first call, held against the float64 reference: its numbers, what it was given, its result its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from kerneltable.model import Kernel, Problem
from kerneltable.run.faults import Meaning, form_fault, meaning_of, reason_of
from kerneltable.run.oracle import error_over_bound, quantizes_input, reference64

SAMPLED_ROWS = 8
"""Rows held against the reference: the first and the last ones, where tiles begin and end."""


WINDOWS, WINDOW = 4, 128
"""Outputs of these rows held against the reference: four windows of 128, from the first to the last, else all n."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: a fault, or None; and why the reference itself could not be computed, if it was not."""

    fault: str | None
    unchecked: str | None = None


def sampled_rows(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    """Indices of the rows to check, ascending.

    With one dynamic scale for the whole input the row that holds the largest magnitude is one of them, so that the
    scale of the sample is that of all rows.
    """
    m = x.shape[0]
    half = SAMPLED_ROWS // 2
    rows = {*range(min(half, m)), *range(max(0, m - half), m)}
    if problem.input_granularity == "tensor" and problem.input_scaling == "dynamic":
        rows.add(int(x.abs().amax(dim=1).argmax()))
    return torch.tensor(sorted(rows), device=x.device)


def sampled_columns(n: int) -> list[range]:
    """Windows of outputs to check, from the first to the last; all outputs in one when they are few."""
    if n <= WINDOWS * WINDOW:
        return [range(n)]
    starts = [round(i * (n - WINDOW) / (WINDOWS - 1)) for i in range(WINDOWS)]
    return [range(start, start + WINDOW) for start in starts]


def check_numbers(
    row: Kernel,
    problem: Problem,
    tensors: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    every_column: bool = False,
) -> Verdict:
    """Hold some rows of a result against the reference, element by element within the bound of the kernel's row.

    problem   completed, with n and k
    x, out    [m, k] and [m, n], m at least 1
    every_column   True: all n outputs of these rows; False: some windows of them
    returns   with a reason when the reference could not be computed here (no float64, no memory)
    errors    an error that means that the device is lost, or a graph is being captured, is passed on
    """
    try:
        rows = sampled_rows(problem, x)
        given, asked, found = x[rows], out[rows], 0.0
        for columns in [range(problem.n)] if every_column else sampled_columns(problem.n):
            ref, magnitude = reference64(problem, tensors, given, bias, quantizes_input(problem, row.kind), columns)
            part = asked[:, columns.start : columns.stop]
            accumulator = row.numerics.accumulator
            found = max(found, error_over_bound(part, ref, magnitude, problem.k, problem.output, accumulator))
    except Exception as error:
        if meaning_of(error) in (Meaning.LOST, Meaning.CAPTURE) or isinstance(error, MemoryError):
            raise
        return Verdict(None, reason_of(error))
    if found <= 1:
        return Verdict(None)
    return Verdict(f"wrong numbers: error {found:.3g} times its bound in {len(rows)} sampled rows")


def first_call(
    call: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    check: Callable[[torch.Tensor], Verdict],
    x: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: tuple[tuple[int, int], torch.dtype],
    layer: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> tuple[torch.Tensor, Verdict]:
    """Call a kernel twice and look at everything that later calls are not looked at for.

    check    judges the numbers of a result of the right form
    wanted   shape and dtype of the result
    layer    the layer's tensors by name; copies of them live as long as the calls, where memory has room for them
    returns  the first result, and what is wrong: form, numbers, x or the layer changed, memory shared with x or another
             result
    errors   whatever the kernel raises; x and the layer's tensors are as before, also then
    """
    before, copies = x.clone(), copied(layer)
    try:
        with torch.enable_grad():  # what a kernel records when it may, later calls would give to the caller
            out = call(x, bias)
            again = call(x, bias)
    finally:
        changed = ["its input x"] if put_back(x, before) else []
        names = [name for name, copy in copies.items() if put_back(layer[name], copy)]
        changed += [f"{', '.join(names)} of the layer"] if names else []
        copies.clear()
    fault = form_fault(out, *wanted, x.device) or form_fault(again, *wanted, x.device)
    if fault is None and changed:
        fault = f"it changed {' and '.join(changed)}"
    if fault is None and not out.is_contiguous():
        fault = f"the result must be contiguous; found strides {out.stride()}"
    if fault is None and _memory(out) in (_memory(again), _memory(x)):
        fault = "the result shares memory with x or with an earlier result"
    return out, Verdict(fault) if fault else check(out)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all its work, so that an error of this work is raised here."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def give_back_memory(device: torch.device) -> None:
    """Return what the allocator keeps for later use but nobody uses."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of each tensor that has numbers; none at all where memory has no room for them."""
    try:
        return {name: tensor.detach().clone() for name, tensor in tensors.items() if not tensor.is_meta}
    except RuntimeError as error:
        if meaning_of(error) is not Meaning.MEMORY:
            raise
        return {}


def put_back(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Put a tensor's bytes back; True when they had changed."""
    if same_bytes(copy, tensor):
        return False
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(copy)
    return True


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def same_bytes(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Equal byte for byte, NaN included."""
    return torch.equal(_bytes(before), _bytes(after))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
