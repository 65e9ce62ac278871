"""Launches of one function that differ in a few arguments: what they share is written once, into their frames.

A call then writes its own few words, which takes the host half the time of a launch that writes all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any, NamedTuple

from kerneltable.ops.cuda_launch import CELLS, Frame, Function, Size, TensorMap


class Own(NamedTuple):
    """A frame that a thread has for one call.

    fill    writes the call's arguments
    start   launches it, and returns the driver's status
    """

    fill: Callable[..., None]
    start: Callable[[], int]
    memory: Any
    frame: Frame


class Repeated:
    """A launch with one grid, on one stream. Safe with several threads; each has a frame of its own meanwhile."""

    __slots__ = ("_arguments", "_block", "_free", "_function", "_grid", "_map_at", "_maps", "_stream")

    def __init__(
        self, function: Function, grid: Size, block: Size, stream: int, arguments: tuple[float | None, ...],
        maps: tuple[TensorMap | None, ...] = (),
    ) -> None:  # fmt: skip
        """Keep what is the same for every call.

        arguments  all but the tensor maps, as Function takes them; None: each call gives its own
        maps       in order, held from now on; None (one at most): each call gives its own
        """
        self._function, self._grid, self._block, self._stream = function, grid, block, stream
        self._arguments, self._maps = arguments, maps
        first = self._frame()
        self._free = [first]
        self._map_at = (first.frame.table_at - first.frame.at) // 8 + maps.index(None) if None in maps else 0

    def __call__(self, arguments: tuple[float, ...], map: int = 0) -> None:
        """Launch; nothing waits for it.

        arguments  those that were None, in order
        map        the address of the map that was None, which the caller holds until this returns
        errors     KernelUnavailable with the driver's own name of the error
        """
        try:
            own = self._free.pop()
        except IndexError:
            own = self._frame()
        try:
            own.fill(*arguments)
            if map:
                own.memory[self._map_at] = map
            status = own.start()
            if status:
                self._function.again(own.frame, status, self._grid, self._block)
        finally:
            self._free.append(own)

    def _frame(self) -> Own:
        """A frame that is filled but for the arguments of a call, which lie behind the rest of it."""
        function, maps = self._function, [0 if one is None else one.address for one in self._maps]
        own = [at for at, value in enumerate(self._arguments) if value is None]
        frame = function.frame(len(own))
        settings = (*self._grid, *self._block, function.shared_bytes, self._stream, *frame.attributes)
        frame.fill(*settings, *(0 if value is None else value for value in self._arguments), *maps)
        words, table = len(frame.memory) - len(own), (frame.table_at - frame.at) // 8 + len(maps)
        for word, at in enumerate(own, words):
            frame.memory[table + at] = frame.at + 8 * word
        cells = Struct("=" + "".join(CELLS[function.types[len(maps) + at]] for at in own))
        start = partial(function.launch, frame.at, function.handle, frame.table_at, None)
        return Own(partial(cells.pack_into, frame.memory, 8 * words), start, frame.memory, frame)
