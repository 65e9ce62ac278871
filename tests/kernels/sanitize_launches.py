"""What a process launches of csrc/cuda, and what it could: for the script that runs under compute-sanitizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from kerneltable.model import Device, Table
from kerneltable.ops import cuda_code, cuda_instances, cuda_launch
from kerneltable.ops.cuda_code import Instance
from kerneltable.ops.sources import csrc_folder
from kerneltable.select.select import device_refusals


class Entry(NamedTuple):
    """A function of a source: "cuda/quantize_tensor.cu", "find_largest"."""

    file: str
    function: str


class Launches:
    """Counts launches by the instance that was launched and by who did it: `user`, a kernel's id or other words."""

    def __init__(self) -> None:
        self.user = ""
        self.found: Counter[tuple[str, Instance]] = Counter()
        self._newest: Instance | None = None

    def watch(self, *, dry: bool) -> None:
        """Watch all that this process launches from now on.

        dry   compile, load and launch nothing: whoever asks believes that it was done
        """
        compiled, load = cuda_code.compiled, cuda_code.load_function
        numbers = count(1)

        def note_compiled(instance: Instance, *more: Any) -> Any:
            self._newest = instance
            return SimpleNamespace(content=b"") if dry else compiled(instance, *more)

        def note_loaded(content: bytes, name: str, types: Any, shared: int, device: int, *, early: bool) -> Any:
            if dry:
                streams: Any = lambda device: 0  # noqa: E731
                number = next(numbers)
                function = cuda_launch.Function(number, lambda *_: 0, device, types, shared, streams, early)
            else:
                function = load(content, name, types, shared, device, early=early)
            newest, launch = self._newest, function.launch
            assert newest is not None

            def note_launched(*where: Any) -> int:
                self.found[self.user, newest] += 1
                return launch(*where)

            return replace(function, launch=note_launched)

        cuda_code.compiled, cuda_code.load_function = note_compiled, note_loaded

    def total(self, user: str) -> int:
        """How often this user launched something."""
        return sum(times for (who, _), times in self.found.items() if who == user)

    def entries(self) -> set[Entry]:
        """The functions that were launched."""
        return {Entry(one.file, one.name) for _, one in self.found}


def use_exact_memory(kernels: Iterable[str], where: torch.device, *, dry: bool) -> None:
    """Give kernels tensors as the memory between their launches: a sanitizer knows where such memory ends.

    dry   also let kernels be bound without a GPU, and describe no matrix to its copy engine
    """
    held: dict[int, torch.Tensor] = {}

    def take(bytes: int, function: Any) -> int:
        memory = torch.empty(bytes, dtype=torch.uint8, device=where)
        held[memory.data_ptr()] = memory
        return memory.data_ptr()

    for name in kernels:
        module: Any = import_module(f"kerneltable.kernels.{name}")
        if hasattr(module, "take"):
            module.take, module.give_back = take, held.pop
        if dry and hasattr(module, "needed"):
            module.needed = lambda chip, kernel, device: chip
    if dry:
        from cuda.bindings import driver

        from kerneltable.ops import stream_memory

        stream_memory.eager_stream = lambda function: 0
        driver.cuTensorMapEncodeTiled = lambda *description: (0, SimpleNamespace(getPtr=lambda: 0))


@contextmanager
def outputs_filled(shape: tuple[int, int]) -> Iterator[None]:
    """Tensors of this shape that are made meanwhile hold NaN: what a kernel does not write is seen in its result."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan) if tuple(tensor.shape) == shape and tensor.is_floating_point() else tensor

    torch.empty = lambda *sizes, **more: filled(empty(*sizes, **more))  # type: ignore[assignment]
    torch.Tensor.new_empty = lambda self, *sizes, **more: filled(new_empty(self, *sizes, **more))  # type: ignore
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = empty, new_empty  # type: ignore[method-assign]


def entries() -> set[Entry]:
    """Every function that the sources of csrc/cuda offer."""
    folder = csrc_folder() / "cuda"
    heads = re.compile(r'extern "C" __global__([^{]*)\{')
    found = set()
    for path in folder.glob("*.cu"):
        for head in heads.findall(path.read_text()):
            names = (name for name in re.findall(r"(\w+)\(", head) if not name.startswith("__"))
            found.add(Entry(f"cuda/{path.name}", next(names)))
    return found


@cache
def entries_of(row: str, multiprocessors: int) -> frozenset[Entry]:
    """The functions that a row launches for some product on a device with so many multiprocessors."""
    products = cuda_instances.usual(multiprocessors)[::7]  # 7 divides none of the counts that are combined inside it
    return frozenset(Entry(one.file, one.name) for one in cuda_instances.instances(row, products))


def rows_for(table: Table, device: Device) -> dict[str, str]:
    """Each row with code in csrc/cuda -> why the chip is none of its own, or ""; whatever is installed."""
    found = {}
    for row in cuda_instances.MODULES:
        refused = device_refusals(table, table.kernels[row], device)
        found[row] = "; ".join(str(one) for one in refused if one.predicate.startswith("runs_on"))
    return found
