"""Every Triton kernel compiles for every architecture that its row names, without that chip, within its shared memory.

Compilation runs in a process of its own, so that neither TRITON_INTERPRET nor the changed driver reaches other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kerneltable.model import Architecture, Problem, Table
from kerneltable.select.devices import device
from kerneltable.select.select import refusals
from kerneltable.table import load_table

HERE = Path(__file__).parent
ENGINE = HERE.parent.parent / "engine"
SCHEMES = {
    "triton_fp8_block": "fp8_block_w8a8",
    "triton_fp8_rowwise": "fp8_w8a8",
    "triton_w8a16": "w8a16_fp8",
    "triton_mxfp8_w8a16": "mxfp8",
}


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table()


def served(table: Table, kernel: str) -> list[Architecture]:
    """The CUDA and ROCm architectures on which nothing of the row refuses; the Intel compiler is not part of Triton."""
    found = []
    for platform in ("cuda", "rocm"):
        for chip in table.platforms[platform].architectures.values():
            problem = Problem(SCHEMES[kernel], n=4096, k=7168)
            if not refusals(table, kernel, device(f"{platform}:{chip.name}", table), problem):
                found.append(chip)
    return found


def compiled(kernel: str, chips: list[Architecture], cache: Path) -> list[dict[str, object]]:
    targets = [
        {
            "name": chip.name,
            "features": sorted(chip.features),
            "capability": None if chip.capability is None else list(chip.capability),
            "shared_memory_kib": chip.shared_memory_kib,
        }
        for chip in chips
    ]
    unset = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**unset, "PYTHONPATH": str(ENGINE), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(HERE / "triton_compile.py"), kernel, json.dumps(targets)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert said.returncode == 0, said.stderr[-4000:]
    return [json.loads(line) for line in said.stdout.splitlines() if line.startswith('{"kernel"')]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", SCHEMES)
def test_a_kernel_compiles_for_every_architecture_of_its_row_within_its_shared_memory(
    kernel: str, table: Table, tmp_path: Path
) -> None:
    chips = served(table, kernel)
    rows = compiled(kernel, chips, tmp_path)
    assert {row["architecture"] for row in rows} == {chip.name for chip in chips}
    known = [row for row in rows if "unknown_to_triton" not in row]
    assert {"sm90"} <= {row["architecture"] for row in known}
    limits = {chip.name: chip.shared_memory_kib for chip in chips}
    for row in known:
        limit = limits[str(row["architecture"])]
        assert limit is not None, row
        assert int(str(row["shared"])) <= limit * 1024, row


@pytest.mark.parametrize("kernel", SCHEMES)
def test_the_rows_name_the_architectures_that_the_compile_test_is_meant_for(kernel: str, table: Table) -> None:
    names = {chip.name for chip in served(table, kernel)}
    assert {"sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121", "gfx950"} <= names
    assert ("sm80" in names) == (kernel in ("triton_w8a16", "triton_mxfp8_w8a16"))
    assert not {"sm70", "sm75"} & names


@pytest.mark.slow
def test_the_fp8_quantizer_is_refused_by_the_compiler_on_sm80_which_is_why_its_rows_leave_sm80_out(
    table: Table, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="fp8e4nv not supported in this architecture"):
        compiled("triton_fp8_block", [table.platforms["cuda"].architectures["sm80"]], tmp_path)
