"""Tensor maps from a thread that has not used CUDA yet: described in the context of torch's current device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import hopper

MATRIX = ("u8", 64, 256, 256, (64, 128))


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Devices whose context was made current, in order."""
    seen: list[int] = []

    @contextmanager
    def own_context(device: int) -> Iterator[None]:
        seen.append(device)
        yield

    monkeypatch.setattr(hopper, "own_context", own_context)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    return seen


class Status(int):
    """A CUresult."""

    name = "CUDA_ERROR_SOMETHING"


def answering(monkeypatch: pytest.MonkeyPatch, *statuses: int) -> list[int]:
    """A driver whose calls return these, and the addresses that were described."""
    driver = pytest.importorskip("cuda.bindings.driver")
    left, described = list(statuses), []

    def encode(*arguments: object) -> tuple[Status, SimpleNamespace]:
        described.append(arguments[2])
        return Status(left.pop(0)), SimpleNamespace(getPtr=lambda: 77)

    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", encode)
    return described


@pytest.mark.parametrize(("statuses", "found"), [((0,), []), ((201, 0), [3]), ((400, 0), [3])])
def test_a_map_without_a_context_is_made_again_in_one(
    contexts: list[int], monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], found: list[int]
) -> None:
    described = answering(monkeypatch, *statuses)
    assert hopper.tensor_map.__wrapped__(4096, *MATRIX).address == 77
    assert (contexts, described) == (found, [4096] * len(statuses))


@pytest.mark.parametrize(("statuses", "found"), [((1,), []), ((201, 201), [3])])
def test_what_fails_there_too_or_for_another_reason_is_an_error(
    contexts: list[int], monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...], found: list[int]
) -> None:
    described = answering(monkeypatch, *statuses)
    with pytest.raises(KernelUnavailable, match="CUDA_ERROR_SOMETHING for 64 x 256 u8"):
        hopper.tensor_map.__wrapped__(4096, *MATRIX)
    assert (contexts, len(described)) == (found, len(statuses))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="needs a GPU that copies tiles"
)
def test_a_new_thread_describes_a_matrix_before_it_does_anything_else() -> None:
    matrix = torch.zeros(64, 256, dtype=torch.uint8, device="cuda")
    found: list[bytes] = []

    def describe() -> None:
        one = hopper.tensor_map.__wrapped__(matrix.data_ptr(), *MATRIX)
        found.append(ctypes.string_at(one.address, 128))

    for thread in (Thread(target=describe), Thread(target=describe)):
        thread.start()
        thread.join()
    describe()
    assert len(found) == 3
    assert len(set(found)) == 1
