"""A short run of the fuzz target and of the fixed corpus; fuzz/ says how to run the long ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", ROOT / "fuzz" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_random_changes_of_tables_and_overrides_end_in_errors_of_our_own() -> None:
    assert script("load_merge_select").run_random(150, seed=7) == 150


def test_the_target_would_see_a_foreign_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    target = script("load_merge_select")
    monkeypatch.setattr("kerneltable.table.load_table", lambda *_: {}["nothing"])
    with pytest.raises(KeyError):
        target.once(b"\x00table: 1\n")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for place, seed in enumerate(script("load_merge_select").seeds()):
        (corpus / f"seed-{place}").write_bytes(seed)
    command = [sys.executable, str(ROOT / "fuzz" / "load_merge_select.py"), str(corpus)]
    # A torch for CUDA takes 1.1 GB of the memory.
    limits = ["-max_total_time=3", "-timeout=20", "-rss_limit_mb=3000", "-max_len=8192"]
    done = subprocess.run([*command, *limits], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_cut_and_flipped_tables_are_answered_without_a_foreign_exception() -> None:
    corpus = script("corpus")
    data = (ROOT / "dispatch.yaml").read_bytes()
    cut = corpus.tried(corpus.truncations(data, len(data) // 15), data)  # 15 or 16 cuts, whatever its length
    flipped = corpus.tried(corpus.flips(data, 15))
    for outcome in (cut, flipped):
        assert outcome.inputs >= 15
        assert (outcome.foreign, outcome.silent) == (0, 0)
        assert outcome.slowest < 5  # 0.1 s on an idle machine; the figure of docs/hard-cases.md is measured apart


def test_a_truncation_that_means_something_else_would_be_seen() -> None:
    corpus = script("corpus")
    data = (ROOT / "tests" / "data" / "tables" / "good" / "small.yaml").read_bytes()
    assert corpus.tried([data], data + b"# a comment more\n").silent == 0
    assert corpus.tried([data.replace(b"multiple_of: 16", b"multiple_of: 32")], data).silent == 1
