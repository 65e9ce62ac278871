"""The compiled-code cache under several processes: one build for eight of them, and kills at every step."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kerneltable.ops import cache
from kerneltable.ops.cache import fetch
from kerneltable.ops.cache_entry import Recipe
from kerneltable.ops.settings import CompileSettings

ENGINE = Path(cache.__file__).parents[2]
RECIPE = Recipe("product", ".so", "0" * 64, "Linux-x86_64", "compiler 1")
CONTENT = bytes(range(256)) * 64

CHILD = """
import hashlib, sys, time
from pathlib import Path
from kerneltable.ops import cache_entry
from kerneltable.ops.cache import fetch
from kerneltable.ops.settings import CompileSettings
recipe = cache_entry.Recipe("product", ".so", "0" * 64, "Linux-x86_64", "compiler 1")
folder, log, pause, stop = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
def hold(step):
    if step == stop:
        (log / "reached").touch()
        time.sleep(60)
def build():
    (log / f"built-{time.time_ns()}-{id(recipe)}").touch()
    hold("build")
    time.sleep(pause)
    return bytes(range(256)) * 64
write, move = cache_entry._write, cache_entry._move
def slow_write(path, content):
    hold("before " + path.suffix)
    if path.suffix + " half" == stop[7:]:
        path.write_bytes(content[: len(content) // 2])
        hold(stop)
    write(path, content)
def slow_move(*arguments):
    hold("before move")
    move(*arguments)
    hold("after move")
cache_entry._write, cache_entry._move = slow_write, slow_move
print(hashlib.sha256(fetch(recipe, CompileSettings(folder=folder, timeout_s=30), build).content).hexdigest())
"""


def child(folder: Path, log: Path, pause: float = 0.0, stop: str = "never") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ENGINE)}
    command = [sys.executable, "-c", CHILD, str(folder), str(log), str(pause), stop]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_eight_processes_on_one_key_build_once_and_read_the_same(tmp_path: Path) -> None:
    children = [child(tmp_path / "cache", tmp_path, pause=0.3) for _ in range(8)]
    answers = {process.communicate(timeout=60)[0].strip() for process in children}
    assert answers == {hashlib.sha256(CONTENT).hexdigest()}
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [RECIPE.entry]


STEPS = ["build", "before .so", "before .so half", "before .json", "before .json half", "before move", "after move"]


@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_any_step_leaves_no_bad_entry_and_no_lock(tmp_path: Path, step: str) -> None:
    process = child(tmp_path / "cache", tmp_path, stop=step)
    deadline = time.monotonic() + 30
    while not (tmp_path / "reached").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    settings = CompileSettings(folder=tmp_path / "cache", timeout_s=20)
    builds: list[int] = []
    started = time.monotonic()
    assert fetch(RECIPE, settings, lambda: builds.append(1) or CONTENT).content == CONTENT
    assert time.monotonic() - started < 5
    assert len(builds) == (0 if step == "after move" else 1)
    left = {p.name for p in settings.home().iterdir() if p.is_dir()}
    assert RECIPE.entry in left
    assert step == "after move" or left == {RECIPE.entry}
