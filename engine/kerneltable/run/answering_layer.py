"""What a quantized layer answers about itself: its kernel, why that one, and what it holds."""

from __future__ import annotations

from torch.compiler import is_compiling

from kerneltable.model import Selection
from kerneltable.ops.input_quantizer import source_of
from kerneltable.run.bound_layer import BoundLayer
from kerneltable.run.packing import held_bytes
from kerneltable.run.plan import choose
from kerneltable.run.ready import Ready, torch_dtype
from kerneltable.run.release import release_lines
from kerneltable.select import explain
from kerneltable.select.terms import size_text


class AnsweringLayer(BoundLayer):
    """A bound layer that can be asked."""

    @property
    def selection(self) -> Selection:
        """The choice for an unknown m, with every candidate and its refusals."""
        ready = self._ready_now()
        return ready.plan.selection if ready else choose(self.table, self._placed(), self.problem, self._force)

    def selection_for(self, m: int) -> Selection:
        """The choice for m rows, with every candidate and its refusals."""
        return choose(self.table, self._placed(), self.problem.at(m), self._force)

    @property
    def kernel(self) -> str | None:
        """The id of the kernel that computes this layer, for an unknown m; None when nothing takes it."""
        ready = self._ready_now()
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
        selection = self.selection if m is None else self.selection_for(m)
        lines = explain.text(self.table, selection, verbose=verbose)
        lines += [f"  packed   {kernel}: {size_text(size)}" for kernel, size in self.memory().items() if size]
        lines += release_lines(self._source, self.held(), self.why_kept)
        return "\n".join(lines)

    def memory(self) -> dict[str, int]:
        """Bytes that each kernel packed so far holds beside the layer's own tensors; a shared copy counts once."""
        bound = (one for ready in tuple(self._ready.values()) for one in ready.plan.bound())
        return held_bytes([(one.kernel, one.call) for one in bound], self.held())

    def extra_repr(self) -> str:
        """What `print(layer)` shows; less where torch.compile traces, as it does for the names in vmap's errors."""
        if is_compiling():
            return self._problem.scheme
        problem, ready = self.problem, self._ready_now()
        kernel = " + ".join(ready.plan.kernels() if ready else ()) or self.kernel
        return f"{problem.scheme}, n={problem.n}, k={problem.k}, bias={problem.bias}, kernel={kernel}"

    def _ready_now(self) -> Ready | None:
        """What is bound for the declared input dtype; None if nothing is, or with a bias where there is none now."""
        ready = self._ready.get(torch_dtype(self._problem.input))
        return ready if ready is not None and ready.takes(self._buffers["bias"]) else None
