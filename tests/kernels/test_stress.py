"""What `make stress` says of a difference, and that it needs a GPU; the run itself is for a machine with one."""

from __future__ import annotations

import sys
import time

import pytest
import stress
import torch


def test_a_difference_is_named_by_its_rows_and_tiles_of_columns() -> None:
    wanted = torch.zeros(4, 200)
    out = wanted.clone()
    out[1, 70], out[3, 130:132] = 2.0, torch.tensor([0.5, torch.nan])
    said = stress.difference(out, wanted)
    assert said == "3 of 800 differ, by inf at most: 2 rows from 1 to 3, 3 columns in tiles [1, 2] of 64"


def test_without_a_hopper_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["stress.py"])
    assert stress.main() == 2
    assert capsys.readouterr().out == "stress: needs a Hopper GPU\n"


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_calls_on_many_streams_keep_their_bits() -> None:
    seen = stress.run(seconds=5.0)
    assert len(seen.compared) > 10
    assert not seen.told


def test_a_wrong_output_is_counted_and_told_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.inference_mode())
    seen = stress.Seen()
    ones, twos = torch.ones(2, 3), torch.full((2, 3), 2.0)
    stress.repeat("right", lambda i: (ones, twos)[i], (ones, twos), time.monotonic() + 0.05, seen)
    stress.repeat("wrong", lambda i: ones, (ones, twos), time.monotonic() + 0.05, seen)
    stress.repeat("broken", lambda i: torch.ones(2)[3], (ones, twos), time.monotonic() + 0.05, seen)
    assert seen.told.pop().startswith("BROKEN broken: IndexError: ")
    assert seen.differed.pop("broken") == 1
    assert seen.compared["right"] > 0
    assert set(seen.differed) == {"wrong"}
    assert seen.compared["wrong"] > seen.differed["wrong"] > stress.MOST_TOLD  # one input of two
    assert len(seen.told) == stress.MOST_TOLD
    assert seen.told[0].startswith("WRONG wrong: 6 of 6 differ, by 1 at most")
