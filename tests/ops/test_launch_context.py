"""A launch from a thread whose current context is not the function's: done again in the right one, once."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import cuda_launch
from kerneltable.ops.cuda_launch import INT32, POINTER, Function


@pytest.fixture
def contexts(monkeypatch):
    """Devices whose context was made current, in order."""
    seen = []

    @contextmanager
    def own_context(device):
        seen.append(device)
        yield

    monkeypatch.setattr(cuda_launch, "own_context", own_context)
    monkeypatch.setattr(cuda_launch, "error_name", lambda status: f"CUresult {status}")
    return seen


def launching(*statuses: int) -> tuple[Function, list[int]]:
    """A function of device 1 whose launches return these, and the functions that were launched."""
    left, launched = list(statuses), []

    def launch(at, handle, table, extra):
        launched.append(handle)
        return left.pop(0)

    return Function(77, launch, 1, (POINTER, INT32), 0, lambda device: 0), launched


def test_a_launch_that_works_touches_no_context(contexts):
    function, launched = launching(0)
    function((1, 1, 1), (32, 1, 1), (0, 5))
    assert (contexts, launched) == ([], [77])


@pytest.mark.parametrize("status", sorted(cuda_launch.OTHER_CONTEXT))
def test_a_launch_in_another_context_is_done_again_in_that_of_its_device(contexts, status):
    function, launched = launching(status, 0)
    function((1, 1, 1), (32, 1, 1), (0, 5))
    assert (contexts, launched) == ([1], [77, 77])


@pytest.mark.parametrize(("statuses", "times"), [((400, 400), 2), ((1,), 1), ((700,), 1)])
def test_what_fails_there_too_or_for_another_reason_is_an_error(contexts, statuses, times):
    function, launched = launching(*statuses)
    with pytest.raises(KernelUnavailable, match=f"device 1: CUresult {statuses[-1]}"):
        function((1, 1, 1), (32, 1, 1), (0, 5))
    assert len(launched) == times
    assert len(function.free) == 1
