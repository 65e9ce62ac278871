"""A quantized layer bound to kernels: where it is, what it is packed for, and when that is over."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kerneltable.errors import CaptureError, KernelInputError
from kerneltable.model import Device, Problem, Selection, Table
from kerneltable.ops.input_quantizer import source_of
from kerneltable.ops.torch_op import register
from kerneltable.run.checkpoint_tensors import HANDLE, CheckpointTensors
from kerneltable.run.layer import INPUT_FORMATS, Declared, Layer
from kerneltable.run.packing import held_bytes
from kerneltable.run.place import Run, check_place, device_for, forked_away, on_device
from kerneltable.run.plan import bind, choose
from kerneltable.run.ready import Ready, are_own, own_buffers, torch_dtype
from kerneltable.run.release import release, release_lines
from kerneltable.run.tensor_source import TensorSource
from kerneltable.run.watch import is_capturing
from kerneltable.select import complete, explain
from kerneltable.select.problems import scheme_of
from kerneltable.select.terms import size_text

if TYPE_CHECKING:
    from typing import Self

NOT_COPIED = frozenset({"_lock", "_ready", "_captured", "_device", "_op", "_source", "_own", "why_kept"})


class BoundLayer(CheckpointTensors):
    """A layer, the table that decides for it, and one plan for each dtype of x that it has met.

    Plans belong to one process, one device and one set of tensors: they are never copied, pickled or moved, but made
    anew where the layer then is. Those that a CUDA graph was captured with live as long as the layer.
    `why_kept` says why tensors that the caller wants held once were not released; None: they were, or nobody asked.
    """

    weight: Tensor
    bias: Tensor | None
    _ready: dict[torch.dtype, Ready]
    _captured: list[Run]
    _device: Device | None
    why_kept: str | None

    def __init__(
        self,
        layer: Layer,
        table: Table,
        device: Device | None,
        declared: Declared,
        force: str | None = None,
        name: str = "",
        *,
        spelled: Mapping[str, str] | None = None,
    ) -> None:
        """Choose a kernel, and pack for it where the tensors allow it.

        device    None: that of the tensors, wherever they are moved
        spelled   the scheme's own name of a tensor -> its name in the checkpoint, where they differ
        errors    NoKernelError (every candidate refuses), ProblemError
        """
        scheme = table.schemes[layer.problem.scheme]
        trusted = declared.trusted_scales
        super().__init__(scheme, layer.tensors, layer.bias, spelled=spelled or {}, trusted_scales=trusted, name=name)
        self.table = table
        self.declared = declared
        self._given = device
        self._force = force
        self._problem = complete(scheme, layer.problem)
        self._k = self._problem.k
        self._output = None if declared.output is None else torch_dtype(self._problem.output)
        self._begin()
        choose(table, self._placed(), self._problem, force)
        if self._can_bind():
            self._bind(torch_dtype(self._problem.input))

    # --- Questions ----------------------------------------------------------------------------------------------

    @property
    def problem(self) -> Problem:
        """The problem of this layer, m unknown, for the input dtype it was declared for."""
        return self._problem

    @property
    def selection(self) -> Selection:
        """The choice for an unknown m, with every candidate and its refusals."""
        ready = self._ready.get(torch_dtype(self._problem.input))
        return ready.plan.selection if ready else choose(self.table, self._placed(), self._problem, self._force)

    @property
    def kernel(self) -> str | None:
        """The id of the kernel that computes this layer, for an unknown m; None when nothing takes it."""
        ready = self._ready.get(torch_dtype(self._problem.input))
        return ready.plan.kernel if ready else self.selection.kernel

    def kernel_for(self, m: int) -> str:
        """The id of the kernel that computes m rows (at least 1) of the declared input dtype, packed if need be.

        errors   NoKernelError with every refusal, KernelInputError when the layer is not on its device
        """
        return self._bind(torch_dtype(self._problem.input)).plan.id_for(m)

    def input_quantizer_for(self, m: int) -> str | None:
        """Whose code quantizes m rows of the declared input dtype: "cuda" (csrc), "triton" or "torch".

        returns  None where the kernel does that itself, or leaves x as it is
        errors   those of kernel_for
        """
        kernel = self._bind(torch_dtype(self._problem.input)).plan.kernel_for(m)
        quantizer = getattr(kernel, "_quantize", None)
        return None if quantizer is None else source_of(quantizer)

    def explain(self, m: int | None = None, *, verbose: bool = False) -> str:
        """The choice as text: the winner and why it is placed where it is, what refused the others, bands, memory.

        verbose   every refusal of every candidate instead of the first; the same as `kerneltable explain -v`
        """
        selection = (
            self.selection if m is None else choose(self.table, self._placed(), self._problem.at(m), self._force)
        )
        lines = explain.text(self.table, selection, verbose=verbose)
        lines += [f"  packed   {kernel}: {size_text(size)}" for kernel, size in self.memory().items() if size]
        lines += release_lines(self._source, self.held(), self.why_kept)
        return "\n".join(lines)

    def memory(self) -> dict[str, int]:
        """Bytes that each kernel packed so far holds beside the layer's own tensors; a shared copy counts once."""
        bound = (one for ready in tuple(self._ready.values()) for one in ready.plan.bound())
        return held_bytes([(one.kernel, one.call) for one in bound], self.held())

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        problem, ready = self._problem, self._ready.get(torch_dtype(self._problem.input))
        kernel = " + ".join(ready.plan.kernels() if ready else ()) or self.kernel
        return f"{problem.scheme}, n={problem.n}, k={problem.k}, bias={problem.bias}, kernel={kernel}"

    # --- Binding --------------------------------------------------------------------------------------------------

    def prepare(self, m: int | Iterable[int] = (), input: str | None = None) -> Self:
        """Bind, pack, compile and check now what calls with these numbers of rows need.

        Wanted before a CUDA graph is captured, also by torch.compile(mode="reduce-overhead"): in its warm-up run a
        kernel would be packed into the memory of the graph.

        m        rows, each at least 1; none: bind and pack for an unknown m, and run nothing
        input    dtype of x (bf16, f16, f32); None: the declared one
        errors   those of a call
        """
        dtype = torch_dtype(input or self._problem.input)
        if self._has_numbers():
            self._bind(dtype)
        for rows in (m,) if isinstance(m, int) else m:
            self.serve(torch.randn(rows, self._k).to(dtype).to(self.place))
        return self

    def repack(self) -> Self:
        """Pack again what was packed, after tensors were changed in place by other means than `load_state_dict`."""
        with self._lock:
            self._hold()
            self._changed(numbers=True)
        return self

    def rebind(self, table: Table) -> Self:
        """Let another table decide from now on: pack what was packed again, then change over at once.

        errors   NoKernelError, ProblemError (the table has no such scheme): the layer then stays as it is
        """
        with self._lock:
            complete(scheme_of(table, self._problem.scheme), self._problem)
            device = self._given or device_for(self.place, table)
            choose(table, device, self._problem, self._force)
            whole = TensorSource(self.tensors())
            ready = {dtype: self._packed(dtype, table, device, whole) for dtype in tuple(self._ready)}
            self._hold(whole.held())
            self.table, self._device, self._ready, self._own = table, device, ready, own_buffers(whole.held())
            self._release(ready)
        return self

    def serve(self, x: Tensor) -> Tensor:
        """x [..., k] to [..., n]; what the registered op runs."""
        raise NotImplementedError

    def _bind(self, dtype: torch.dtype) -> Ready:
        """The plan for a dtype of x, with the tensors of now; made by the first caller while others wait."""
        known = self._ready  # replaced when the tensors change: what is made for the old ones is then forgotten
        with self._lock:
            ready = known.get(dtype)
            if ready is not None and ready.fits(self._buffers):
                return ready
            if is_capturing():
                raise CaptureError(
                    f"{self.name}: not bound for {dtype} yet, and a CUDA graph is being captured; call "
                    "layer.prepare(m=...) with the rows of the graph before the capture"
                )
            place = self.place
            if (forked := forked_away(place)) is not None:
                raise forked
            if ready is not None and self._given is None and ready.place != place:
                self._device = None
            known[dtype] = self._packed(dtype, self.table, self._device_here())
            self._release(known)
            return known[dtype]

    def _release(self, known: dict[torch.dtype, Ready]) -> None:
        """Let a packed copy stand for the tensors, where the caller wants that and every plan of now allows it."""
        wanted = not self.declared.keep_checkpoint and self._source is None and known is self._ready
        pins, fitting = self._pins(), {dtype: one for dtype, one in known.items() if one.fits(self._buffers)}
        if not (wanted and fitting and are_own(pins, self._own)):
            return
        source = next(iter(fitting.values())).plan.source
        self.why_kept = release(source, [one.plan for one in fitting.values()])
        if self.why_kept is None:
            self._let_go(source, pins)
            known.update({dtype: replace(one, pins=tuple(self._pins().items())) for dtype, one in fitting.items()})

    def _packed(self, dtype: torch.dtype, table: Table, device: Device, source: TensorSource | None = None) -> Ready:
        """A plan for a dtype of x with the tensors of now (or of a source), by a table, for a device."""
        pins, place = self._pins() if source is None else source.held(), self.place
        alike = [one.plan for one in tuple(self._ready.values()) if one.fits(pins)]
        source = source or (alike[0].source if alike else TensorSource(self.tensors()))
        packed = next((plan.packed for plan in alike if plan.table is table), None)
        problem, verify = self._problem_for(dtype), self.declared.verify
        plan = bind(table, device, problem, source, self._force, verify=verify, packed=packed)
        run = on_device(plan, place)
        if place.type == "cuda":
            run = register().kept_through_captures(run, getattr(self, HANDLE), self._captured, is_capturing)
        return Ready(plan, run, place, tuple(pins.items()))

    def _problem_for(self, dtype: torch.dtype) -> Problem:
        input = INPUT_FORMATS[dtype]
        return replace(self._problem, input=input, output=self.declared.output or input)

    def _device_here(self) -> Device:
        """The Device that decides. errors: KernelInputError when the tensors are not on it."""
        elsewhere = check_place(self._placed(), self.place)
        if elsewhere is not None:
            raise KernelInputError(f"{self.name}: {elsewhere}")
        return self._placed()

    def _placed(self) -> Device:
        """The Device that decides: the given one, else that of the tensors."""
        if self._device is None:
            self._device = self._given or device_for(self.place, self.table)
        return self._device

    def _has_numbers(self) -> bool:
        return self._problem.n > 0 and self._k > 0

    def _can_bind(self) -> bool:
        return self._has_numbers() and check_place(self._placed(), self.place) is None

    # --- When that is over ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """In this process and place nothing is bound yet."""
        self._lock = threading.RLock()
        self._captured = []
        self._op = register().op
        self._renew()

    def _renew(self) -> None:
        """Forget what is bound, and give the op a new handle: what was traced with the old one is traced again."""
        place = self.place
        self._kind = "cpu" if place.type == "meta" else place.type
        self._ready, self._device, self.why_kept = {}, None, None
        self._own = own_buffers(self._pins())
        old = self._buffers.get(HANDLE)
        self.register_buffer(HANDLE, register().enter(self, place), persistent=False)
        register().leave(self, old)

    def _changed(self, *, numbers: bool) -> None:
        """Pack again at once what was packed: later would be inside a call, or the warm-up of a CUDA graph."""
        if not numbers:
            bound, why = self._ready, self.why_kept
            self._renew()
            self._ready, self.why_kept = bound, why
            return
        dtypes = tuple(self._ready)
        self._renew()
        for dtype in dtypes if self._can_bind() else ():
            self._bind(dtype)

    def after_fork(self) -> None:
        """In a forked child: a thread of the parent may have held the lock; a GPU cannot be used."""
        self._lock = threading.RLock()
        if self._kind != "cpu":
            self._ready = {}

    def _drop(self) -> frozenset[str]:
        return NOT_COPIED

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()
