"""What is fixed once for a layer: the kernels that the table chose, constructed and packed, and who computes a call.

When a kernel fails, the next one of the selection computes the same call; run/watch.py says what counts as failing.
Inside a CUDA graph capture nothing is chosen, packed or checked: what m needs must have run before.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kerneltable.errors import CaptureError, NoKernelError
from kerneltable.formats import FORMATS
from kerneltable.kernels import registry
from kerneltable.kernels.contract import BoundKernel
from kerneltable.model import CHECKPOINT, Device, Problem, Selection, Table
from kerneltable.run.choice import (
    Choices,
    choose,
    in_order,
    no_kernel_text,
    required_kernel,
    warn_of_slow_path,
)
from kerneltable.run.faults import Meaning, form_fault
from kerneltable.run.ledger import Ledger, ShapeClass, band_of, named, say, shared_ledger
from kerneltable.run.packing import pack_safely
from kerneltable.run.tensor_source import TensorSource
from kerneltable.run.trial import give_back_memory
from kerneltable.run.watch import Bound, Fault, Watch, is_capturing

__all__ = ["Plan", "bind", "choose", "no_kernel_text"]

MOST_ROWS = 4096
"""Different m that a plan remembers at a time."""


class Plan:
    """The kernels of one layer for one input dtype: chosen, packed once, kept; call it with x [m, k] and the bias.

    selection   the answer for an unknown m; what `explain` shows
    by_rows     True when a row of the route, a step or a denial looks at m: then each call's m decides
    packed      what kernels of a layout packed, by layout, for the other kernels of it
    source      the layer's tensors, held or made again when a kernel is packed or checked
    ledger      what failed, was checked and was counted; the process's own unless one is given
    """

    def __init__(
        self,
        table: Table,
        device: Device,
        problem: Problem,
        tensors: Mapping[str, Tensor] | TensorSource,
        force: str | None = None,
        ledger: Ledger | None = None,
        *,
        verify: str | None = None,
        packed: dict[str, Any] | None = None,
    ) -> None:
        self.table = table
        self.device = device
        self.force = force
        self.source = tensors if isinstance(tensors, TensorSource) else TensorSource(tensors)
        self.ledger = ledger or shared_ledger()
        self.selection = choose(table, device, problem.at(None), force)
        self.packed = {} if packed is None else packed
        self.problem = self.selection.problem
        self._choices = Choices(table, device, self.selection, force)
        self.by_rows = self._choices.rows is not None
        required = required_kernel(table, device, problem.scheme, force)
        about = (table, device, self.problem, self.source, self._choices.order, required)
        self._watch = Watch(*about, self.ledger, verify, self._choices.one_kernel)
        self._n = problem.n
        self._place = self.source.place
        self._dtype: torch.dtype = getattr(torch, FORMATS[problem.output].torch_dtype)
        self._bound: dict[str, Bound] = {}
        self._generation = self.ledger.generation
        self._ready: dict[int, Bound] = {}
        lost = self.ledger.loss_of(device)
        if lost is not None:
            raise lost
        if not self.by_rows or self._choices.steady:
            self._resolve(None)

    @property
    def kernel(self) -> str | None:
        """The id of the kernel for an unknown m: the first of the selection that is not set aside for the layer."""
        kept = (kernel for kernel in in_order(self.selection) if not self._watch.aside(kernel, None))
        return next(kept, self.selection.kernel)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The layer's tensors as in the checkpoint; see TensorSource.whole."""
        return self.source.whole()

    def firsts(self) -> Iterator[tuple[int, str | None]]:
        """One m of each band, and the id of its kernel, packed or not: the first not set aside; None when all are."""
        for m in self._choices.rows_of_bands():
            yield m, next((one for one in self._choices.order(m) if self._watch.aside(one, band_of(m)) is None), None)

    def kernels(self) -> tuple[str, ...]:
        """The ids of the kernels that compute this layer, by rising m, packed or not."""
        return tuple(dict.fromkeys(kernel for _, kernel in self.firsts() if kernel is not None))

    def kernel_for(self, m: int) -> BoundKernel:
        """The packed kernel for m rows (at least 1), without the checks of a call.

        errors   NoKernelError with every refusal and fault when nothing takes them
        """
        return self._resolve(m).call

    def id_for(self, m: int) -> str:
        """The id of the kernel for m rows, packed by now."""
        return self._resolve(m).kernel

    def bound(self) -> tuple[Bound, ...]:
        """The kernels packed so far."""
        return tuple(self._bound.values())

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compute x @ dequantized(weight).T + bias with the first kernel of the selection that works.

        x        [m, k], m at least 1, in problem.input, columns contiguous, on the tensors' device
        bias     [n] or None
        returns  [m, n] in problem.output
        errors   NoKernelError (every reason), KernelFault (a required kernel failed), DeviceLost, CaptureError,
                 KernelInputError, LayerError (bias), torch.OutOfMemoryError; KeyboardInterrupt and MemoryError pass
        """
        m = x.shape[0]
        bound = self._ready.get(m) if self._generation == self.ledger.generation else None
        if bound is None:
            return self._slowly(x, bias)
        try:
            out = bound.call(x, bias)
        except Exception as error:
            fault: Fault | None = error
        else:
            if type(out) is not Tensor or not (
                out.shape == (m, self._n) and out.dtype is self._dtype and out.device == self._place
            ):
                fault = form_fault(out, (m, self._n), self._dtype, self._place)
                if fault is not None:
                    return self._slowly(x, bias, bound, fault)
            return out
        return self._slowly(x, bias, bound, fault)

    # --- The slow path: first calls, and calls in which a kernel failed -------------------------------------------

    def _slowly(
        self, x: Tensor, bias: Tensor | None, failed: Bound | None = None, fault: Fault | None = None
    ) -> Tensor:
        """Go through the selection until a kernel computes this call; remember what failed."""
        watch = self._watch
        watch.admit(x, bias, fault)
        capturing = is_capturing()
        ready = self._fresh()
        tried: set[str] = set()
        again = False
        while True:
            if failed is not None and fault is not None:
                again = watch.settle(failed.kernel, fault, x, again, capturing)
                tried |= set() if again else {failed.kernel}
            bound = self._resolve(x.shape[0], tried, capturing)
            try:
                out, fault = watch.run(bound, x, bias, capturing, scarce=again)
            except Exception as error:
                fault = error
            else:
                if fault is None:
                    self._remember(ready, x.shape[0], bound)
                    return out
            failed = bound

    def _fresh(self) -> dict[int, Bound]:
        """The kernels by m, emptied if the ledger has moved on since they were put in.

        Needs no lock: whoever gets a dict chooses a kernel only afterwards, and puts it in that dict.
        """
        now = self.ledger.generation
        if self._generation != now:
            self._ready = {}
            self._generation = now
        return self._ready

    def _remember(self, ready: dict[int, Bound], m: int, bound: Bound) -> None:
        """Let later calls with m rows go straight to a kernel; ready is the dict from before the kernel was chosen."""
        if len(bound.ran) >= MOST_ROWS:
            bound.ran.clear()
        bound.ran.add(m)
        if not self._watch.thorough:
            if len(ready) >= MOST_ROWS:
                ready.clear()
            ready[m] = bound

    # --- Choosing and packing -------------------------------------------------------------------------------------

    def _resolve(self, m: int | None, tried: Collection[str] = (), capturing: bool = False) -> Bound:
        """The first kernel of the selection for m rows that is not set aside, packed; tried ones failed in this call.

        errors   NoKernelError when none is left; CaptureError when one would have to be made ready inside a capture
        """
        band = None if m is None else band_of(m)
        reasons: list[str] = []
        for kernel in self._choices.order(m):
            record = self._watch.aside(kernel, band)
            if record is None and kernel not in tried:
                bound = self._bound.get(kernel)
                if capturing:
                    return self._captured(kernel, bound, m)
                bound = bound or self._pack(kernel, m, reasons)
                if bound is not None:
                    return bound
                record = self._watch.aside(kernel, band)
            reasons.append(str(record) if record else f"{kernel}: failed in this call")
        selection = self._choices.selection(m)
        raise NoKernelError(no_kernel_text(selection, reasons), selection)

    def _captured(self, kernel: str, bound: Bound | None, m: int | None) -> Bound:
        """The kernel for a call that is being captured; CaptureError unless it ran as many rows before."""
        if self._watch.thorough:
            why = "every call is checked or waited for, which a graph cannot hold; use verify='first'"
        elif bound is None or m not in bound.ran:
            why = f"{kernel} has not run m={m} before: run the layer once with as many rows, then capture"
        else:
            return bound
        raise CaptureError(f"{ShapeClass(self.problem)} cannot be captured into a CUDA graph: {why}")

    def _pack(self, kernel: str, m: int | None, reasons: list[str], again: bool = False) -> Bound | None:
        """Pack a kernel once; None when it cannot be had here and is set aside."""
        watch = self._watch
        with self.ledger.packing(self.source.key):
            if kernel in self._bound or watch.aside(kernel, None):
                return self._bound.get(kernel)
            stage = "load"
            try:
                adapter = registry.load(kernel)
                stage = "pack"
                tensors = self.tensors
                what = (self.table, kernel, adapter, self.problem, tensors)
                call = pack_safely(*what, device=self.device, packed=self.packed)
            except Exception as error:
                if watch.meaning(kernel, error) is not Meaning.MEMORY:
                    watch.set_aside(kernel, stage, error, m)
                    return None
                if again:
                    raise watch.explained(error, kernel, None) from None
            else:
                self.source.keep(tensors, call, needs=self.table.kernels[kernel].layout == CHECKPOINT)
                self._bound[kernel] = Bound(kernel, call)
                self._tell(kernel, self._choices.selection(m), reasons)
                return self._bound[kernel]
            give_back_memory(self._place)
            return self._pack(kernel, m, reasons, again=True)

    def _tell(self, kernel: str, selection: Selection, reasons: list[str]) -> None:
        """Count a selection, and log it in one line."""
        refused = [candidate.kernel for candidate in selection.candidates if candidate.refusals]
        self.ledger.count("selections", kernel)
        for other in refused:
            self.ledger.count("refusals", other)
        shapes = ShapeClass(self.problem)
        say(logging.INFO, "%s computes %s on %s; %d refuse", kernel, shapes, named(self.device), len(refused))
        warn_of_slow_path(self.table, selection, kernel, reasons)


def bind(
    table: Table,
    device: Device,
    problem: Problem,
    tensors: Mapping[str, Tensor] | TensorSource,
    force: str | None = None,
    ledger: Ledger | None = None,
    *,
    verify: str | None = None,
    packed: dict[str, Any] | None = None,
) -> Plan:
    """Choose, construct and pack the kernel of a layer.

    tensors   the layer's parameters under the scheme's own names, on the device
    force     a kernel id that must be taken; None leaves the choice to the table
    ledger    None: the one that this process shares
    verify    which calls are held against the reference: first, always, never; None: as the ledger says
    packed    what other plans with these tensors packed, by layout, to share; None: nothing is shared
    errors    NoKernelError, with every candidate and all of its refusals, when none takes the problem;
              KernelFault when a required kernel cannot be had; DeviceLost; torch.OutOfMemoryError
    """
    return Plan(table, device, problem, tensors, force, ledger, verify=verify, packed=packed)
