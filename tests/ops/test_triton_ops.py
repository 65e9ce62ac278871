"""The cases of the Triton ops and kernels, under the interpreter everywhere and compiled where there is a GPU."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.triton_interpreted import run_cases

HERE = Path(__file__).parent
FILES = {
    "quantizers": (HERE / "triton_cases_quantize.py", 40),
    "products": (HERE / "triton_cases_product.py", 60),
    "kernels": (HERE.parent / "kernels" / "triton_cases_kernels.py", 30),
}


NUMPY, TRITON = (tuple(int(part) for part in v.split(".")[:2]) for v in (np.__version__, version("triton")))
FIRST_BROKEN = (2, 5) if TRITON >= (3, 9) else (2, 4)
BROKEN = NUMPY >= FIRST_BROKEN  # range() over tensor bounds raises


@pytest.mark.skipif(BROKEN, reason="this Triton's interpreter does not work with this numpy")
@pytest.mark.parametrize("name", FILES)
def test_the_cases_hold_under_the_interpreter(name: str) -> None:
    path, least = FILES[name]
    passed, text = run_cases(path, interpret=True)
    assert passed >= least, text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FILES)
def test_the_cases_hold_compiled_on_the_gpu(name: str) -> None:
    path, least = FILES[name]
    passed, text = run_cases(path, interpret=False)
    assert passed >= least, text
