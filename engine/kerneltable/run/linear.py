"""QuantLinear: a quantized linear layer computed by the kernel that the table chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, is_autocast_enabled
from torch._C import _is_any_autocast_enabled, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import maybe_current_level
from torch.compiler import is_compiling
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from kerneltable.errors import KernelInputError
from kerneltable.model import Device, Table
from kerneltable.ops.torch_op import refuse_followed
from kerneltable.run.answering_layer import AnsweringLayer
from kerneltable.run.arguments import check_answers, checked_table, checked_tensors, scheme_named
from kerneltable.run.checkpoint_tensors import HANDLE
from kerneltable.run.granularity import checked_block
from kerneltable.run.layer import Declared, format_of, read_layer, spelled_otherwise
from kerneltable.run.place import present_device, shipped_table
from kerneltable.run.transforms import check_traceable, gradients_are_followed, not_plain, unreadable

if TYPE_CHECKING:
    from typing import Self


class QuantLinear(AnsweringLayer):
    """y = x @ dequantized(weight).T + bias, for inference.

    The checkpoint's tensors are persistent buffers under the scheme's own names (`weight`, `weight_scale`, ...);
    `state_dict` gives them back as they came, under the names that they came by. They keep their dtypes: `.half()` and
    `.to(dtype)` move nothing but the device. There is no gradient: whatever x asks for, the result is detached.
    `layer.bias` may be assigned, [n] in any of the dtypes of x, or None. With one where there was none, or none where
    there was one, the table chooses again at the next call.
    """

    @classmethod
    def from_tensors(  # noqa: PLR0913  one keyword for each thing that a layer's tensors may leave open
        cls,
        scheme: str,
        tensors: Mapping[str, torch.Tensor | None],
        bias: torch.Tensor | None = None,
        table: Table | None = None,
        device: Device | str | None = None,
        *,
        input: str = "bf16",
        output: str | None = None,
        weight_granularity: str | None = None,
        weight_block: tuple[int, int] | None = None,
        input_granularity: str | None = None,
        input_scaling: str | None = None,
        trusted_scales: bool = False,
        verify: str | None = None,
        keep_checkpoint: bool = True,
        kernel: str | None = None,
        name: str = "layer",
        model: str | None = None,
    ) -> Self:
        """Build a layer from the tensors of a checkpoint and bind it to the kernel that the table chooses.

        tensors   weight [n, k] float8_e4m3fn, weight_scale (or weight_scale_inv), optional input_scale,
                  input_scale_ub, bias; shapes and dtypes as in `kerneltable.run.layer.read_layer`
        bias      [n] f32, bf16 or f16
        table     as load_table gives it; None: the shipped one
        device    a Device, a name of the table ("h200"), or None: the device of the tensors, probed. For a device that
                  is not the tensors' own the layer can be asked (`kernel`, `explain`), not called; one processor
                  computes with the kernels of another as far as it can
        input     dtype of x to bind for now (bf16, f16, f32); another dtype is bound at its first call
        output    dtype of the result; None: that of x
        verify    which calls are held against the float64 reference within the kernel's bound, so that a kernel that
                  computes wrong is set aside and the next one takes over: "first" (of each kernel, device and band of
                  m), "always" (every call, which then runs twice and cannot be captured), "never"; None: as
                  `shared_ledger().verify` says
        keep_checkpoint  False: where every kernel of the layer works from packed copies, and one of them gives the
                  checkpoint's tensors back exactly, they are released, and made again for whoever asks (`layer.weight`,
                  state dicts, copies, checks); `explain` says what came of it
        kernel    a kernel that must be taken, else NoKernelError
        model     the name of the checkpoint, for errata that speak of some models; None: unknown
        errors    LayerError (tensors), ProblemError (table, scheme, dtype), NoKernelError (every candidate refuses)
        """
        table = checked_table(table, name) or shipped_table()
        known = scheme_named(scheme, table, name)
        tensors = checked_tensors(tensors, name)
        check_answers({"trusted_scales": trusted_scales, "keep_checkpoint": keep_checkpoint}, name)
        block = checked_block(weight_block, name)
        inputs = input_granularity, input_scaling
        declared = Declared(input, output, weight_granularity, block, *inputs, trusted_scales, verify, keep_checkpoint)
        layer = read_layer(known, tensors, bias, declared, name)
        layer = replace(layer, problem=replace(layer.problem, model=model))
        where = None if device is None else present_device(device, table)
        return cls(layer, table, where, declared, kernel, name, spelled=spelled_otherwise(known, tensors))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        x        [..., k] or [k], f32, bf16 or f16, any strides, on the layer's device; under autocast it is first cast
                 to autocast's dtype, as for torch.nn.Linear
        returns  [..., n], in the declared output dtype, else that of x; detached
        errors   KernelInputError (shape, dtype or device of x), LayerError (a bias was put in that does not fit),
                 NoKernelError (no kernel takes this dtype, or a bias),
                 CaptureError (not prepared, inside a CUDA graph capture, be it another thread's)
        """
        if (  # whoever looks on does not see what kernels write. Spelled out: a call of is_transforming is dearer
            is_compiling()
            or type(x) is not Tensor
            or _is_tracing()
            or _len_torch_dispatch_stack()
            or maybe_current_level() is not None
            or is_fx_symbolic_tracing()
        ):
            return self._looked_on(x)
        if _is_any_autocast_enabled() and is_autocast_enabled(self._kind):
            return self._compute_slowly(self._cast(x))
        return self._compute(x)

    def serve(self, x: Tensor) -> Tensor:
        """x [..., k] to [..., n], as `forward` without tracing and casting; what the registered op runs."""
        return self._compute_slowly(x) if is_autocast_enabled(self._kind) else self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        """The straight way: one look-up by dtype, then the kernel. Whatever is unusual goes the long way."""
        ready = self._ready.get(x.dtype)
        if ready is None or x.requires_grad or x.device != ready.place:
            return self._compute_slowly(x)
        buffers = self._buffers
        for name, packed, address, at in ready.pins:
            if buffers[name] is not packed or address() != at:
                return self._compute_slowly(x)
        bias = ready.bias
        if buffers["bias"] is not bias or (bias is not None and bias.numel() != self._n):  # through its .data
            return self._compute_slowly(x)
        try:
            shape = x.shape
            usual = len(shape) > 1 and shape[-1] == self._k and x.is_contiguous() and x.numel() and not x.is_neg()
        except RuntimeError:  # a nested tensor has no shape, a sparse one no strides
            return self._compute_slowly(x)
        if not usual:
            return self._compute_slowly(x)
        if len(shape) == 2:
            return ready.run(x, bias)
        return ready.run(x.view(-1, self._k), bias).view(*shape[:-1], -1)

    def _compute_slowly(self, x: Tensor) -> Tensor:
        """Check x, bind what is not bound, flatten, compute without autocast, and give the leading dimensions back."""
        self._check_input(x)
        if x.numel() == 0 or self._problem.n == 0 or x.is_meta:
            return self._without_product(x)
        ready = self._bind(x.dtype)
        rows = x.detach().reshape(-1, self._k).contiguous()
        with torch.autocast(self._kind, enabled=False):
            out = ready.run(rows, ready.bias)
        return out.reshape(*x.shape[:-1], self._problem.n)

    def _looked_on(self, x: Tensor) -> Tensor:
        """The layer as one opaque operation, for whoever traces, records or transforms; its kernel is found inside."""
        if not is_compiling():
            check_traceable(x, self.name)
        elif gradients_are_followed():
            refuse_followed(x, self.name)
        if isinstance(x, Tensor):  # no proxy of torch.fx.symbolic_trace
            x = x.detach() if x.requires_grad else x
            x = self._cast(x) if is_autocast_enabled(self._kind) else x
        out: Tensor = self._op(x, self._buffers[HANDLE], self._problem.n, self._k, self._output)
        return out

    def _cast(self, x: Tensor) -> Tensor:
        """x as autocast casts it for nn.Linear: floating point but not float64."""
        usual = x.is_floating_point() and x.dtype != torch.float64
        return x.to(torch.get_autocast_dtype(self._kind)) if usual else x

    def _check_input(self, x: Tensor) -> None:
        """KernelInputError when this layer cannot take x."""
        strange = unreadable(x)
        if strange is not None:
            raise not_plain(strange, self.name)
        if format_of(x) is None:
            raise KernelInputError(
                f"{self.name}: x must be bf16, f16 or f32; found {x.dtype}; convert it with x.to(...)"
            )
        if x.dim() == 0 or x.shape[-1] != self._k:
            raise KernelInputError(
                f"{self.name}: the last dimension of x must be k = {self._k}; found {list(x.shape)}; "
                "is this the input of another layer, or transposed?"
            )
        if x.device != self.place:
            raise KernelInputError(
                f"{self.name}: x is on {x.device}, the layer on {self.place}; move one of them with .to(...)"
            )

    def _without_product(self, x: Tensor) -> Tensor:
        """[..., n] when there is nothing to multiply (no rows, no columns, k = 0, or meta): zeros plus bias."""
        dtype, bias = self._output or x.dtype, self._bias_here()
        out = torch.zeros((*x.shape[:-1], self._problem.n), dtype=dtype, device=x.device)
        return out if bias is None else out + bias.to(dtype)
