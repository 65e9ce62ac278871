"""Functions and ops of other installed libraries, looked up when a kernel that needs one is bound, never before.

What cannot be had is a KernelUnavailable with its reason, so that the next kernel of the route can take over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kerneltable.errors import KernelInputError, KernelUnavailable

LONGEST_REASON = 300


def library_function(module: str, name: str, distribution: str) -> Callable[..., Any]:
    """A function (or class) of another library.

    module        where it is defined, such as "deep_gemm"; imported here
    distribution  the package to install, for the message
    errors        KernelUnavailable when the module cannot be imported or has no such function
    """
    found = library_value(module, name, distribution)
    if not callable(found):
        raise KernelUnavailable(f"{module}.{name}: must be a function; found {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def library_value(module: str, name: str, distribution: str) -> Any:
    """What another library's module has under a name; parameters and errors as in library_function."""
    try:
        holder = import_module(module)
    except MemoryError:
        raise
    except Exception as error:
        raise KernelUnavailable(
            f"{module}: cannot be imported ({_short(error)}); install or repair package '{distribution}'"
        ) from error
    if not hasattr(holder, name):
        raise KernelUnavailable(
            f"{module}: wanted {name}; found none; take a version of '{distribution}' that the row names"
        )
    return getattr(holder, name)


@contextmanager
def on_one_device(module: str, device: torch.device) -> Iterator[None]:
    """Bind a layer in the with-block, for a library whose loaded kernels fail with an invalid handle elsewhere.

    module   the library's
    device   of the weights; only CUDA devices count, and only when the block ends without an error: else nothing of
             the library was loaded there
    errors   KernelUnavailable if this process bound the library for another CUDA device before, also meanwhile
    """
    if device.type != "cuda":
        yield
        return
    kept = _kept_devices()
    _refuse_another(module, kept.get(module, device), device)
    yield
    _refuse_another(module, kept.setdefault(module, device), device)


@cache
def _kept_devices() -> dict[str, torch.device]:
    """Module -> the first CUDA device that it was bound for: of the process, as what the libraries keep is."""
    return {}


def _refuse_another(module: str, first: torch.device, device: torch.device) -> None:
    if first != device:
        raise KernelUnavailable(
            f"{module}: keeps its kernels for one device of a process, {first} here; found {device}; give {device} a "
            "process of its own, or let the table choose"
        )


def library_op(names: Iterable[str], arguments: Iterable[str], package: str) -> Any:
    """The default overload of a torch op that a library registers.

    names      "namespace::op", the first that is registered counts
    arguments  names of arguments that it must have
    package    the library; its own _C*.so files are loaded when no such op is registered yet (its Python is not run)
    errors     KernelUnavailable when none is registered, or its arguments are others
    """
    names, arguments = tuple(names), tuple(arguments)
    op = _registered(names)
    if op is None:
        _load_library(package)
        op = _registered(names)
    if op is None:
        raise KernelUnavailable(
            f"op {' or '.join(names)}: not registered; install '{package}' built for this machine, or import it first"
        )
    missing = [argument for argument in arguments if argument not in argument_names(op)]
    if missing:
        raise KernelUnavailable(
            f"op {op}: wanted arguments {', '.join(missing)}; found {', '.join(argument_names(op))}; take a version of "
            f"'{package}' that the row names"
        )
    return op


def argument_names(op: Any) -> tuple[str, ...]:
    """The names of an op's arguments, in order."""
    return tuple(argument.name for argument in op._schema.arguments)


def refuse_bias(bias: torch.Tensor | None) -> None:
    """For libraries that round before a bias could be added: KernelInputError when there is one."""
    if bias is not None:
        raise KernelInputError("bias: this kernel takes none, and its row says so; found one; let the table choose")


def _registered(names: Iterable[str]) -> Any:
    for name in names:
        space, _, op = name.partition("::")
        packet = getattr(getattr(torch.ops, space), op, None)
        if packet is not None and "default" in packet.overloads():
            return packet.default
    return None


def _load_library(package: str) -> None:
    """Load the compiled part of an installed package, without running its Python."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder).glob("_C*.so")):
            try:
                torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
            except (OSError, RuntimeError) as error:
                raise KernelUnavailable(
                    f"{package}: {file.name} cannot be loaded ({_short(error)}); is it built for this torch?"
                ) from error


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:LONGEST_REASON]
