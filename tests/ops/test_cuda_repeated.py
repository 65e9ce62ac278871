"""Launches that differ in a few arguments: the driver finds what it would find at a launch that states all of them."""

from __future__ import annotations

import ctypes
from struct import Struct
from threading import Barrier, Thread
from typing import Any

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import cuda_launch
from kerneltable.ops.cuda_launch import (
    BY_VALUE,
    CONFIGURATION,
    EARLY,
    FIRST_CELL,
    FLOAT32,
    INT32,
    INT64,
    POINTER,
    Function,
    TensorMap,
)
from kerneltable.ops.cuda_repeated import Repeated

TYPES = (BY_VALUE, BY_VALUE, POINTER, INT32, POINTER, FLOAT32, INT64, INT32)
CELLS = [kind for kind in TYPES if kind is not BY_VALUE]
GRID, BLOCK, STREAM = (3, 2, 1), (32, 4, 1), 11
HIGH = (1 << 63) + 5


def seen_by(early: bool, status: int = 0) -> tuple[Function, list[Any]]:
    """A function, and what the driver finds at its launches."""
    seen: list[Any] = []

    def launch(at: int, handle: int, table: int, extra: None) -> int:
        *fields, attributes, number = Struct(CONFIGURATION).unpack(ctypes.string_at(at, FIRST_CELL))
        entries = (ctypes.c_uint64 * len(TYPES)).from_address(table)
        values = [kind.from_address(at).value for kind, at in zip(CELLS, entries[2:], strict=True)]
        stated = ctypes.string_at(attributes, Struct(EARLY).size * number) if number else b""
        seen.append((fields, stated, [*entries[:2]], values))
        return status

    return Function(7, launch, 0, TYPES, 1024, lambda device: STREAM, early), seen


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("own_map", [None, 0, 1])
@pytest.mark.parametrize("own", [(), (0,), (5,), (0, 2, 3), (1, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_the_driver_finds_what_a_whole_launch_would_say(own: tuple[int, ...], own_map: int | None, early: bool) -> None:
    function, seen = seen_by(early)
    maps = [TensorMap(64, None), TensorMap(128, None)]
    kept = tuple(None if at == own_map else one for at, one in enumerate(maps))
    whole = [HIGH, -5, 1 << 40, 0.25, -(1 << 40), 2**31 - 1]
    repeated = Repeated(
        function, GRID, BLOCK, STREAM, tuple(None if at in own else value for at, value in enumerate(whole)), kept
    )
    for turn in range(3):
        given = [value if at == 3 else value - turn for at, value in enumerate(whole)]
        arguments = [given[at] if at in own else value for at, value in enumerate(whole)]
        addresses = tuple(192 + turn if at == own_map else one.address for at, one in enumerate(maps))
        repeated(tuple(given[at] for at in own), 0 if own_map is None else 192 + turn)
        function(GRID, BLOCK, tuple(arguments), addresses)
        assert seen[-2] == seen[-1]
        assert seen[-1][2:] == ([*addresses], arguments)
    assert seen[-1][0] == [*GRID, *BLOCK, 1024, STREAM]


def test_threads_that_launch_at_the_same_time_do_not_write_each_other_s_arguments() -> None:
    together, found = Barrier(8, timeout=20), set()

    def launch(at: int, handle: int, table: int, extra: None) -> int:
        together.wait()  # all have written theirs
        entries = (ctypes.c_uint64 * len(TYPES)).from_address(table)
        found.add(INT64.from_address(entries[6]).value)
        return 0

    function = Function(7, launch, 0, TYPES, 0, lambda device: 0)
    maps = (TensorMap(64, None), TensorMap(128, None))
    repeated = Repeated(function, GRID, BLOCK, 0, (0, 0, 0, 0.0, None, 0), maps)
    for turn in (0, 8):
        threads = [Thread(target=repeated, args=((turn + i,),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {*range(16)}


def test_a_launch_that_fails_is_an_error_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_launch, "error_name", lambda status: f"CUresult {status}")
    function, seen = seen_by(early=False, status=700)
    repeated = Repeated(
        function, GRID, BLOCK, STREAM, (0, 0, 0, 0.0, None, 0), (TensorMap(0, None), TensorMap(0, None))
    )
    for value in (1, 2):
        with pytest.raises(KernelUnavailable, match=r"grid \(3, 2, 1\), block \(32, 4, 1\), device 0: CUresult 700"):
            repeated((value,))
    assert [values[4] for *_, values in seen] == [1, 2]
