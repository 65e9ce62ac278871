"""Exceptions of kerneltable. Everything it raises on purpose is a KernelTableError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneltable.model import Mark, Selection


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong, or doubtful, in a table or override file.

    code      stable, e.g. "KT104"; `kerneltable rule KT104` explains it
    severity  "error" | "warning" | "note"
    path      the place in the document, e.g. "kernels.triton_fp8_block.accepts.n.min"
    length    how many characters of the source line to underline
    help      the next step, or ""
    witness   a command that shows it on one problem, or ""
    """

    code: str
    severity: str
    message: str
    mark: Mark
    path: str = ""
    length: int = 1
    help: str = ""
    line_text: str = ""
    witness: str = ""


class KernelTableError(Exception):
    """Root of the errors that kerneltable raises on purpose."""


class ConfigError(KernelTableError):
    """A table or override cannot be used. `findings` holds every problem, sorted by file, line and column."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(f"{f.mark}: error[{f.code}] {f.message}" for f in self.findings))


class ProblemError(KernelTableError):
    """A question that the table cannot be asked: unknown scheme, device, dtype, negative size."""


class NoKernelError(KernelTableError):
    """Every candidate refuses. `selection` holds each of them with all of its refusals."""

    def __init__(self, message: str, selection: Selection) -> None:
        self.selection = selection
        super().__init__(message)


class LayerError(KernelTableError):
    """A layer's tensors do not fit its scheme: missing, doubled, of a wrong shape, dtype or value."""


class KernelInputError(KernelTableError):
    """A tensor given to a kernel or op has a wrong shape, dtype or device."""


class CheckpointError(KernelTableError):
    """A checkpoint directory cannot be read, or describes a quantization that no scheme covers."""


class KernelUnavailable(KernelTableError):  # noqa: N818  a state of the machine
    """A kernel cannot run on this machine: no compiler, no cache folder, a compile error; the message says why."""


class ShapeUnavailable(KernelUnavailable):
    """A kernel cannot run layers of one shape on this machine, such as for shared memory that an instance lacks."""


class WeightsRefused(KernelUnavailable):
    """A kernel cannot take the weights of one layer: NaN codes, or scales that its numbers cannot hold."""


class KernelFault(KernelTableError):  # noqa: N818  named as in the hard cases
    """A kernel that must be taken (forced, or required by the table) failed to load, pack or run, or was wrong."""


class DeviceLost(KernelTableError):  # noqa: N818  named as in the hard cases
    """An error of a device that only a new process cures: nothing is tried on it again; see `kerneltable.report()`."""


class CaptureError(KernelTableError):
    """Something that must be ready before a CUDA graph is captured was not, or a kernel failed inside a capture.

    Also what cannot be made ready because another thread is capturing: CUDA forbids it to all of them by default.
    """
