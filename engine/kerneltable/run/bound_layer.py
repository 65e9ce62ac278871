"""A quantized layer bound to kernels: where it is, what it is packed for, and when that is over."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kerneltable.errors import CaptureError, KernelInputError
from kerneltable.model import Device, Problem, Table
from kerneltable.ops.torch_op import register
from kerneltable.run.checkpoint_tensors import HANDLE, CheckpointTensors
from kerneltable.run.layer import INPUT_FORMATS, Declared, Layer, check_bias
from kerneltable.run.place import Run, check_place, device_for, forked_away, on_device
from kerneltable.run.plan import Plan, bind, choose
from kerneltable.run.put_in import read_again
from kerneltable.run.ready import Ready, are_own, own_buffers, pinned, torch_dtype
from kerneltable.run.release import release
from kerneltable.run.tensor_source import TensorSource
from kerneltable.run.transforms import check_readable
from kerneltable.run.watch import is_capturing
from kerneltable.select import complete
from kerneltable.select.problems import scheme_of

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
        self._k, self._n = self._problem.k, self._problem.n
        self._output = None if declared.output is None else torch_dtype(self._problem.output)
        self._begin()
        choose(table, self._placed(), self._problem, force)
        if self._can_bind():
            self._bind(torch_dtype(self._problem.input))

    @property
    def problem(self) -> Problem:
        """The problem of this layer, m unknown, for the input dtype it was declared for and the bias of now."""
        return replace(self._problem, bias=self._buffers["bias"] is not None)

    def _as_buffer(self, name: str, value: Any) -> Any:
        """A value to be assigned, as a buffer.

        errors   LayerError for a bias of another shape or dtype: the layer keeps the one that it has. One on another
                 device, and any other tensor that does not fit, are refused at the call, if they are there by then
        """
        if name != "bias" or value is None:
            return super()._as_buffer(name, value)
        check_bias(value, self._problem.n, None, self.name)
        return value.detach()

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
            numbers = torch.randn(rows, self._k, generator=torch.Generator().manual_seed(rows))
            self.serve(numbers.to(dtype).to(self.place))
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
            choose(table, device, self.problem, self._force)
            whole = self.tensors()
            check_readable(whole, self.name)
            source = TensorSource(self._read(whole))
            ready = {dtype: self._packed(dtype, table, device, whole, source) for dtype in tuple(self._ready)}
            self._hold(whole)
            self.table, self._device, self._ready, self._own = table, device, ready, own_buffers(whole)
            self._release(ready)
        return self

    def serve(self, x: Tensor) -> Tensor:
        """x [..., k] to [..., n]; what the registered op runs."""
        raise NotImplementedError

    def _bind(self, dtype: torch.dtype) -> Ready:
        """The plan for a dtype of x, with the tensors of now; made by the first caller while others wait."""
        known = self._ready  # replaced when the tensors change: what is made for the old ones is then forgotten
        with self._lock:
            ready, bias = known.get(dtype), self._bias_here()
            if ready is not None and ready.fits(self._buffers) and ready.takes(bias):
                if ready.bias is not bias:
                    ready = known[dtype] = replace(ready, bias=bias)
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
            made = self._packed(dtype, self.table, self._device_here())
            for other in [other for other, one in known.items() if not one.takes(made.bias)]:
                del known[other]
            known[dtype] = made
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
            known.update({dtype: replace(one, pins=pinned(self._pins())) for dtype, one in fitting.items()})

    def _packed(
        self,
        dtype: torch.dtype,
        table: Table,
        device: Device,
        whole: Mapping[str, Tensor] | None = None,
        source: TensorSource | None = None,
    ) -> Ready:
        """A plan for a dtype of x with the tensors of now (or whole ones, their source), by a table, for a device."""
        pins, place, bias = whole or self._pins(), self.place, self._bias_here()
        check_readable(pins, self.name)
        known = pinned(pins)
        alike = [one.plan for one in tuple(self._ready.values()) if one.fits(pins)]
        source = source or (alike[0].source if alike else TensorSource(self._read(self.tensors())))
        packed = next((plan.packed for plan in alike if plan.table is table), None)
        problem, verify = self._problem_for(dtype, bias is not None), self.declared.verify
        plan = bind(table, device, problem, source, self._force, verify=verify, packed=packed)
        return Ready(plan, self._run_of(plan, place), place, known, bias)

    def _read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's tensors of now for its kernels. errors: LayerError when they are not those of such a layer."""
        return read_again(self._scheme, self._problem, tensors, self.name, trusted_scales=self._trusted)

    def _run_of(self, plan: Plan, place: torch.device) -> Run:
        """A plan's call, on its device; once captured, it and the handle of now are kept."""
        run = on_device(plan, place)
        if place.type != "cuda":
            return run
        return register().kept_through_captures(run, getattr(self, HANDLE), self._captured, is_capturing)

    def _problem_for(self, dtype: torch.dtype, bias: bool) -> Problem:
        input = INPUT_FORMATS[dtype]
        return replace(self._problem, input=input, output=self.declared.output or input, bias=bias)

    def _bias_here(self) -> Tensor | None:
        """The bias of now. errors: LayerError when it does not fit the layer, however it got there."""
        bias = self._buffers["bias"]
        if bias is not None:
            check_bias(bias, self._problem.n, self.place, self.name)
        return bias

    def _device_here(self) -> Device:
        """The Device that decides. errors: KernelInputError when the tensors are not on it."""
        elsewhere = self._elsewhere()
        if elsewhere is not None:
            raise KernelInputError(f"{self.name}: {elsewhere}")
        return self._placed()

    def _placed(self) -> Device:
        """The Device that decides: the given one, else that of the tensors, wherever they were put meanwhile."""
        place = self.place
        elsewhere = self._device is not None and self._given is None and place.type != "meta"
        if self._device is None or (elsewhere and check_place(self._device, place) is not None):
            self._device = self._given or device_for(place, self.table)
        return self._device

    def _elsewhere(self) -> str | None:
        """Why the tensors of now cannot be computed by the device that decides; None when they can."""
        return check_place(self._placed(), self.place, None if self._given is None else self.table)

    def _has_numbers(self) -> bool:
        return self._problem.n > 0 and self._k > 0

    def _can_bind(self) -> bool:
        """Whether the tensors can be packed now; those that are moved in parts can be when the last one is there."""
        places = {tensor.device for tensor in self._pins().values() if tensor is not None}
        return self._has_numbers() and len(places) < 2 and self._elsewhere() is None

    # --- When that is over ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """In this process and place nothing is bound yet."""
        self._lock = threading.RLock()
        self._captured = []
        self._op = register().op
        self._renew()

    def _renew(self) -> None:
        """Forget what is bound, and give the op a new handle."""
        place = self.place
        self._kind = "cpu" if place.type == "meta" else place.type
        self._ready, self._device, self.why_kept = {}, None, None
        self._own = own_buffers(self._pins())
        self._new_handle()

    def _new_handle(self) -> None:
        """A new handle for the op and what is bound: graphs that were captured with the old one are captured again."""
        old = self._buffers.get(HANDLE)
        self.register_buffer(HANDLE, register().enter(self, self.place), persistent=False)
        register().leave(self, old)
        ready = self._ready
        ready.update({dtype: replace(one, run=self._run_of(one.plan, one.place)) for dtype, one in ready.items()})

    def _changed(self, *, numbers: bool) -> None:
        """Pack again at once what was packed: later would be inside a call, or the warm-up of a CUDA graph."""
        if not numbers:
            self._new_handle()
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
