"""Answers that are kept in a file: what is replaced, what is written into, what is refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from kerneltable.cli.output import replace_json
from kerneltable.errors import ProblemError


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    for answer in ({"format": 1, "long": "x" * 99}, {"format": 2}):
        replace_json(str(kept), answer)
        assert json.loads(kept.read_text()) == answer
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    kept, link, again = tmp_path / "there" / "kept.json", tmp_path / "link.json", tmp_path / "again.json"
    kept.parent.mkdir()
    if there:
        kept.write_text("old")
    link.symlink_to("there/kept.json")
    again.symlink_to(link)
    replace_json(str(again), {"format": 1})
    assert json.loads(kept.read_text()) == {"format": 1}
    assert link.is_symlink()
    assert again.is_symlink()
    assert list(kept.parent.iterdir()) == [kept]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    replace_json(str(pipe), {"format": 1})
    assert pipe.is_fifo()
    reader.join(10)
    assert json.loads(read[0]) == {"format": 1}
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_a_folder_and_no_name_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProblemError, match=r"--out.*wanted .*; found .*; name a file"):
        replace_json(name, {})
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_is_an_error_that_names_it_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(link)
    with pytest.raises(OSError, match=r"link\.json"):
        replace_json(str(link), {})
    assert link.is_symlink()
