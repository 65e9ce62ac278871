"""Group C: reload, memory and order; docs/hard-cases.md says which cases other files hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import kerneltable
from kerneltable import Engine
from kerneltable.model import Problem
from kerneltable.select import device, select
from kerneltable.table import load_table

OLD = "override: 1\nroutes: {mxfp8: {cuda: {prefer: reference}}}\n"
NEW = "override: 1\nroutes: {mxfp8: {xpu: {prefer: reference}}}\n "  # of the same size
ENGINE = Path(kerneltable.__file__).parent.parent
GOLDEN = Path(__file__).parents[1] / "golden"


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def in_place(path: Path) -> None:
    path.write_text(NEW)


def renamed(path: Path) -> None:
    written(path.with_suffix(".new"), NEW).replace(path)


def deleted_and_made_again(path: Path) -> None:
    path.unlink()
    written(path, NEW)


def same_time_and_size(path: Path) -> None:
    before = path.stat()
    assert len(NEW.encode()) == before.st_size
    path.write_text(NEW)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def time_backwards(path: Path) -> None:
    path.write_text(NEW)
    os.utime(path, (1, 1))


def link_swapped(path: Path) -> None:
    """What a mounted ConfigMap does: a folder of its own for each version, and one link that is renamed."""
    folder = path.parent.parent / "v2"
    folder.mkdir()
    written(folder / path.name, NEW)
    fresh = path.parent.parent / "..tmp"
    fresh.symlink_to("v2")
    fresh.replace(path.parent.parent / "..data")


WAYS = (in_place, renamed, deleted_and_made_again, same_time_and_size, time_backwards, link_swapped)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_c07_a_reload_sees_other_content_however_the_file_was_changed(
    tmp_path: Path, way: Callable[[Path], None]
) -> None:
    """Content counts, not times or sizes. Nothing watches the file: the operator says when."""
    (tmp_path / "v1").mkdir()
    written(tmp_path / "v1" / "deploy.yaml", OLD)
    (tmp_path / "..data").symlink_to("v1")
    path = tmp_path / "..data" / "deploy.yaml"
    engine = Engine(None, [path])
    before = engine.digest
    assert not engine.reload().changed
    way(path)
    found = engine.reload()
    assert (found.ok, found.changed) == (True, True)
    assert engine.digest != before
    assert engine.table.routes["mxfp8", "xpu"].prefer is not None


@pytest.mark.parametrize("cut", range(0, len(OLD) - 1, 6))
def test_c07_a_torn_file_changes_nothing_and_the_whole_one_takes_over(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "deploy.yaml", OLD)
    engine = Engine(None, [path])
    before = engine.digest
    path.write_text(OLD[:cut])
    found = engine.reload()
    if found.ok:  # a prefix may be an override of its own; then it says that it changes nothing
        assert "KT405" in {finding.code for finding in found.findings}
    else:
        assert engine.digest == before
    path.write_text(NEW)
    assert engine.reload().ok
    assert engine.table.routes["mxfp8", "xpu"].prefer is not None


def test_c11_memory_stays_bounded_over_many_selections(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small bound, so that it is passed often; that the shipped one holds is test_memory_is_bounded."""
    most = 200
    monkeypatch.setattr(sys.modules["kerneltable.select.select"], "MOST_ANSWERS", most)
    table = load_table()
    where = device("h200", table)

    def peak_of(turn: int) -> int:
        for place in range(turn * 3 * most, (turn + 1) * 3 * most):
            select(table, where, Problem("mxfp8", n=32, k=32 * (place + 1)))
            assert len(table.answers) <= most
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return peak

    tracemalloc.start()
    first, *later = map(peak_of, range(4))  # a round asks three times as much as is kept
    tracemalloc.stop()
    assert max(later) < 2 * first  # if answers stayed, it would be nearly 4 times


PROGRAM = """
import hashlib, regenerate
table = regenerate.load_table()
print(hashlib.sha256("".join(regenerate.lines(table, "all")).encode()).hexdigest(), table.digest)
"""


def test_c12_hash_seeds_and_missing_asserts_change_no_decision() -> None:
    """Each answer in a process of its own; -O takes asserts away."""
    answers = set()
    for seed, more in (("0", ()), ("7", ()), ("20", ("-O",))):
        home = {"PYTHONPATH": f"{ENGINE}{os.pathsep}{GOLDEN}", "PYTHONHASHSEED": seed}
        told = subprocess.run(
            [sys.executable, *more, "-c", PROGRAM], env=home, capture_output=True, text=True, check=True
        )
        answers.add(told.stdout)
    assert len(answers) == 1
