"""stdout and stderr of the process: an exit code answers for the command, whatever becomes of its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

NO_ROOM = "the answer cannot be written"


class Outlet(FileIO):
    """A stream of the process that goes on without a reader: what nobody reads is dropped, as if it had been read.

    deaf    also drop what has no room: for messages, which must never stand in the way of an exit code; else that is
            one OSError, and the rest is dropped
    """

    def __init__(self, descriptor: int, *, deaf: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._deaf = deaf

    def write(self, data: Any) -> int:
        """Write, or drop; the number of bytes that are done with."""
        try:
            return super().write(data) or 0
        except OSError as error:
            self._drop()
            if not (self._deaf or isinstance(error, BrokenPipeError)):
                raise OSError(error.errno, error.strerror, NO_ROOM) from error
            return memoryview(data).nbytes

    def _drop(self) -> None:
        """Let the rest vanish, also what another stream of this process writes to the same place."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextmanager
def open_streams() -> Iterator[None]:
    """stdout and stderr take every text and outlive a reader that leaves; those that the caller closed are opened.

    A character that the encoding of a stream lacks is written as an escape. Streams that a program has put in the place
    of its own, as tests do, stay as they are.
    """
    before = sys.stdout, sys.stderr
    try:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # as in `kerneltable check >&-`
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  as long as the process
            elif stream is getattr(sys, f"__{name}__") and isinstance(stream, TextIOWrapper):
                setattr(sys, name, _outliving(stream, deaf=name == "stderr"))
        yield
    finally:
        sys.stdout, sys.stderr = before


def _outliving(stream: TextIOWrapper, *, deaf: bool) -> TextIOWrapper:
    with suppress(OSError):  # what the program wrote before comes first
        stream.flush()
    lines = stream.line_buffering or stream.write_through  # `python -u` writes through
    outlet = BufferedWriter(Outlet(stream.fileno(), deaf=deaf))
    return TextIOWrapper(outlet, stream.encoding, "backslashreplace", line_buffering=lines)
