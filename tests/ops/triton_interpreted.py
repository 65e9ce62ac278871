"""Run a file of Triton cases in a process of its own, interpreted on the CPU or compiled for the GPU that is there.

Triton decides at import whether it interprets, so cases cannot share a process with tests that compile.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_cases(path: Path, interpret: bool) -> tuple[int, str]:
    """Run the cases of a file.

    path       a file of test functions whose name pytest does not collect by itself
    interpret  True: Triton's interpreter, CPU tensors; False: compiled, CUDA tensors
    returns    how many passed, and what pytest printed; raises AssertionError with it when one failed
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "engine"), str(ROOT / "tests")))}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-cov", str(path)]
    if not _has_coverage():
        command.remove("--no-cov")
    said = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    text = said.stdout[-6000:] + said.stderr[-2000:]
    assert said.returncode == 0, text
    passed = re.search(r"(\d+) passed", said.stdout)
    return (int(passed[1]) if passed else 0), text


def _has_coverage() -> bool:
    from importlib.util import find_spec

    return find_spec("pytest_cov") is not None
