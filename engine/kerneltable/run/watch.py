"""Running the kernels of one layer under watch: what is checked of a call, and what a failed one leads to.

A kernel that fails, or whose result is wrong, is set aside in the ledger for its device and shape class; one that
cannot take the weights of this layer, for this layer alone. Out of memory
is no fault of the kernel: unused memory is given back and the same kernel tried once more, then torch's error goes to
the caller and nothing is remembered. What another thread's graph capture forbids is a CaptureError, and nothing is
remembered. After a sticky device error nothing is tried. A required kernel that fails raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from kerneltable.errors import (
    CaptureError,
    DeviceLost,
    KernelFault,
    KernelInputError,
    KernelUnavailable,
    ShapeUnavailable,
    WeightsRefused,
)
from kerneltable.formats import FORMATS
from kerneltable.kernels import registry
from kerneltable.kernels.contract import BoundKernel
from kerneltable.model import Device, Problem, Table
from kerneltable.run.faults import Meaning, form_fault, meaning_of, reason_of
from kerneltable.run.layer import check_bias
from kerneltable.run.ledger import BANDS, Ledger, SetAside, ShapeClass, band_of, named
from kerneltable.run.tensor_source import TensorSource
from kerneltable.run.transforms import is_transforming, unreadable
from kerneltable.run.trial import Verdict, check_numbers, first_call, give_back_memory, wait_for

Fault = Exception | str


@dataclass(slots=True, eq=False)
class Bound:
    """A kernel packed for one layer, and the m that it has run."""

    kernel: str
    call: BoundKernel
    ran: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One layer and where it keeps its experience.

    problem   completed, its m None
    order     the kernels of the selection for m rows (None: unknown) in order, to say which one comes next
    required  the kernel that must be taken, or None
    verify    which calls of this layer are checked; None: as the ledger says
    every_m   True: one kernel serves every m, so one that fails for a band of m is left for all of them
    declined  kernels that cannot take the weights of this layer
    """

    table: Table
    device: Device
    problem: Problem
    source: TensorSource
    order: Callable[[int | None], Sequence[str]]
    required: str | None
    ledger: Ledger
    verify: str | None = None
    every_m: bool = False
    declined: dict[str, SetAside] = field(default_factory=dict)

    @property
    def verifies(self) -> str:
        """Which calls are checked, as the ledger says now unless the layer says otherwise."""
        return self.verify or self.ledger.verify

    @property
    def thorough(self) -> bool:
        """True when every call is looked at, so that no call may take the fast path or be captured."""
        return self.verifies == "always" or self.ledger.synchronize

    def aside(self, kernel: str, band: int | None) -> SetAside | None:
        """Why a kernel is not tried for m of a band (None: at all); a required kernel is always tried."""
        if kernel == self.required:
            return None
        if kernel in self.declined:
            return self.declined[kernel]
        if not self.every_m:
            return self.ledger.aside(kernel, self.device, self.problem, band)
        bands = (None, *range(len(BANDS) + 1))
        records = (self.ledger.aside(kernel, self.device, self.problem, one) for one in bands)
        return next((record for record in records if record is not None), None)

    def admit(self, x: torch.Tensor, bias: torch.Tensor | None, fault: Fault | None = None) -> None:
        """Raise before anything runs: DeviceLost, KernelInputError for no input of this layer, LayerError for its bias.

        fault   what a kernel raised for x, if one ran already: the cause of the error
        """
        lost = self.ledger.loss_of(self.device)
        if lost is not None:
            raise lost
        problem, place = self.problem, self.source.place
        dtype = getattr(torch, FORMATS[problem.input].torch_dtype)
        strange, cure = "a meta tensor" if x.is_meta else unreadable(x), "convert it to a plain tensor"
        if strange is None and (x.dim() != 2 or x.shape[1] != problem.k or x.dtype is not dtype or x.device != place):
            strange, cure = f"{list(x.shape)} in {x.dtype} on {x.device}", "call the layer, not its plan"
        if strange is not None:
            raise KernelInputError(
                f"a plan for {ShapeClass(problem)} on {place} takes x [m, {problem.k}] in {dtype} with numbers; found "
                f"{strange}; {cure}"
            ) from (fault if isinstance(fault, Exception) else None)
        if bias is None:
            return
        check_bias(bias, problem.n, place, str(ShapeClass(problem)))
        if not problem.bias:
            raise KernelInputError(
                f"a plan for {ShapeClass(problem)} on {place} was made for no bias; found {list(bias.shape)} in "
                f"{bias.dtype}; call the layer, which chooses again, not its plan"
            )

    def run(
        self, bound: Bound, x: torch.Tensor, bias: torch.Tensor | None, capturing: bool, *, scarce: bool = False
    ) -> tuple[torch.Tensor, str | None]:
        """Run a kernel, checked as far as the ledger asks for it: the result, and what is wrong with it.

        scarce   memory ran out in this call: the layer's tensors are not copied to see whether they change
        """
        ledger, verify, band = self.ledger, self.verifies, band_of(x.shape[0])
        form = ((x.shape[0], self.problem.n), getattr(torch, FORMATS[self.problem.output].torch_dtype))

        def check(out: torch.Tensor) -> Verdict:
            wait_for(x.device)
            row, whole = self.table.kernels[bound.kernel], verify == "always"
            try:
                tensors = self.source.whole()
            except RuntimeError as error:
                if meaning_of(error) is not Meaning.MEMORY:
                    raise
                return Verdict(None, reason_of(error))
            return check_numbers(row, self.problem, tensors, x, bias, out, every_column=whole)

        seen = verify == "first" and ledger.is_checked(bound.kernel, self.device, self.problem, band)
        if not (seen or capturing or verify == "never"):
            given = {} if scarce else self._given(bound, bias)
            with ledger.packing(self.source.key):  # what another call of this layer spoils is not taken for its tensors
                out, verdict = first_call(bound.call, check, x, bias, form, given)
            if verdict.fault is None:
                ledger.passed(bound.kernel, self.device, self.problem, band, verdict.unchecked)
            return out, verdict.fault
        out = bound.call(x, bias)
        fault = form_fault(out, *form, x.device)
        if ledger.synchronize and not capturing:
            wait_for(x.device)
        return out, fault

    def _given(self, bound: Bound, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The layer's tensors that a kernel could change; where a packed copy stands for some, this copy too."""
        packed = None if self.source.copy is None else getattr(bound.call, registry.PACKED, None)
        parts = packed if isinstance(packed, (tuple, list)) else (packed,)
        given = {**self.source.held(), "bias": bias, **{f"packed[{i}]": part for i, part in enumerate(parts)}}
        return {name: tensor for name, tensor in given.items() if isinstance(tensor, torch.Tensor)}

    def settle(self, kernel: str, fault: Fault, x: torch.Tensor, again: bool, capturing: bool) -> bool:
        """Decide what a failed call means: raise; True: try the same kernel again; False: it is set aside.

        again   the kernel ran out of memory in this call before
        """
        error = fault if isinstance(fault, Exception) else None
        if self.meaning(kernel, error, capturing) is Meaning.MEMORY and error is not None:
            if again or capturing:
                raise self.explained(error, kernel, x.shape[0])
            error.__traceback__ = None  # its frames hold tensors
            give_back_memory(x.device)
            return True
        if capturing:
            raise CaptureError(
                f"{kernel} failed while a CUDA graph is captured: {reason_of(fault)}; no other kernel is tried inside "
                "a capture; end it, run the layer once with the same m, and capture again"
            ) from error
        if error is not None:
            self._look_at_device(kernel, x.device)
        self.set_aside(kernel, "run", fault, x.shape[0])
        if error is not None:
            error.__traceback__ = None
        return False

    def meaning(self, kernel: str, error: Exception | None, capturing: bool = False) -> Meaning:
        """What a failure of a kernel means; errors that no other kernel can mend are raised here.

        capturing   the call itself is being captured: what a capture forbids is then for the caller to judge
        """
        if error is None:
            return Meaning.KERNEL
        if isinstance(error, (MemoryError, DeviceLost, CaptureError)):
            raise error
        if is_transforming():
            raise KernelInputError(
                f"{kernel} cannot be made ready or called for {ShapeClass(self.problem)} inside torch.jit.trace, "
                f"torch.func or a dispatch mode: {reason_of(error)}; it is not set aside: build and prepare the layer "
                "outside of them; inside, call the layer itself"
            ) from error
        meaning = meaning_of(error)
        if meaning is Meaning.LOST:
            raise self.ledger.lose(self.device, f"{kernel}: {reason_of(error)}", kernel) from error
        if meaning is Meaning.CAPTURE and not capturing:
            raise CaptureError(
                f"{kernel} cannot be made ready for {ShapeClass(self.problem)} on {named(self.device)} while another "
                f"thread, or another stream, is capturing a CUDA graph: {reason_of(error)}; it is not set aside: call "
                "again after the capture, or run layer.prepare(m=...) before it, or capture with "
                "torch.cuda.graph(..., capture_error_mode='thread_local')"
            ) from error
        return meaning

    def set_aside(self, kernel: str, stage: str, fault: Fault, m: int | None) -> None:
        """Leave a kernel for its shape class, and say so once; KernelFault when it must be taken.

        stage   load (speaks for every layer), pack (for layers like this one; for every layer where the machine lacks
                something; for this layer alone where it is the weights), run (for those like it, and m of its band)
        m       rows of the call, or for which it was to be packed; None when not known
        """
        reason, band = reason_of(fault), None if m is None or stage != "run" else band_of(m)
        shapes = _class_of(self.problem, stage, fault, band)
        if kernel == self.required:
            self.ledger.count("failures", kernel)
            raise KernelFault(
                f"{kernel} must be taken for {ShapeClass(self.problem, band)} on {named(self.device)} and failed "
                f"({stage}): {reason}; repair it, or let the table choose"
            ) from (fault if isinstance(fault, Exception) else None)
        others = [k for k in self.order(m) if k != kernel and not self.aside(k, None if m is None else band_of(m))]
        instead = others[0] if others else None
        record = SetAside(kernel, self.device, shapes, stage, reason, instead)
        self.ledger.set_aside(record)
        if shapes.alone:
            self.declined[kernel] = record

    def explained(self, error: Exception, kernel: str, m: int | None) -> Exception:
        """Torch's own error of memory that ran out, with a note that says for what; callers know this type."""
        rows = "packing" if m is None else f"m={m}"
        error.add_note(
            f"kerneltable: {kernel} ran out of memory twice for {ShapeClass(self.problem)} ({rows}) on "
            f"{named(self.device)}; it is not set aside: free memory, or send fewer rows at a time, and call again"
        )
        return error

    def _look_at_device(self, kernel: str, place: torch.device) -> None:
        """Before anything else runs there: DeviceLost when the device does not answer after a kernel failed."""
        try:
            wait_for(place)
        except Exception as error:
            self.meaning(kernel, error)


def _class_of(problem: Problem, stage: str, fault: Fault, band: int | None) -> ShapeClass:
    """The calls that a failure speaks for."""
    if stage == "pack" and isinstance(fault, WeightsRefused):
        return ShapeClass(problem, alone=True)
    lacking = isinstance(fault, KernelUnavailable) and not isinstance(fault, ShapeUnavailable)
    return ShapeClass() if stage == "load" or (stage == "pack" and lacking) else ShapeClass(problem, band)


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream; False for a torch without CUDA."""
    try:
        return torch.cuda.is_current_stream_capturing()
    except RuntimeError:
        return False
