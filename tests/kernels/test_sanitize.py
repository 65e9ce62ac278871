"""The script that runs under compute-sanitizer: nothing of csrc/cuda is forgotten by it, shown without a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sanitize
from sanitize_cases import KERNELS, Case, cases, one_of_each_kind
from sanitize_launches import Entry, entries, entries_of, rows_for

from kerneltable.ops import cuda_instances
from kerneltable.ops.hopper_fp8_choice import Stream
from kerneltable.ops.sources import csrc_folder

SCRIPT = Path(sanitize.__file__)
QUANTIZERS = {f"cuda/quantize_{kind}.cu" for kind in ("block", "tensor", "token")}
UNITS = 132


def dry_run(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which then believes that much was compiled and loaded."""
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)


def test_a_hopper_would_launch_every_function_of_every_source() -> None:
    found = dry_run("--dry-run", "sm90")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "not for this device" not in found.stdout
    for kernel in KERNELS:
        assert f"\n{kernel}, " in f"\n{found.stdout}"


def test_another_chip_would_launch_what_is_for_it_and_the_rest_is_listed() -> None:
    found = dry_run("--dry-run", "sm120")
    assert found.returncode == 0, found.stdout + found.stderr
    for kernel in ("hopper_fp8_block", "hopper_fp8_block_fixed", "hopper_w8a16"):
        assert f"not for this device: {kernel}: runs_on.architectures: wanted sm90" in found.stdout
    assert "not for this device: csrc/cuda/hopper_w8a16_wide.cu: hopper_w8a16_wide" in found.stdout
    assert "not for this device: csrc/cuda/quantize_token.cu" not in found.stdout
    assert "\nmma_fp8_block, " in found.stdout


def test_one_kernel_alone_is_not_told_what_the_others_launch() -> None:
    found = dry_run("--dry-run", "sm90", "--only", "hopper_fp8_block_fixed")
    assert found.returncode == 0, found.stdout + found.stderr
    assert {line.split(",")[0] for line in found.stdout.splitlines()[:-1]} == {"hopper_fp8_block_fixed"}


def test_each_row_with_a_product_in_cuda_has_cases_of_its_own() -> None:
    table = sanitize.planned("sm90").table
    products = {row for row in cuda_instances.MODULES if not {e.file for e in entries_of(row, UNITS)} <= QUANTIZERS}
    assert products == set(KERNELS)
    assert set(rows_for(table, sanitize.planned("sm90").device)) == set(cuda_instances.MODULES) <= set(table.kernels)
    assert {kernel for case in cases(table, sanitize.planned("sm90").chip) for kernel in case.kernels} == set(KERNELS)


def test_every_source_has_a_function_and_a_row() -> None:
    assert {one.file for one in entries()} == {f"cuda/{path.name}" for path in (csrc_folder() / "cuda").glob("*.cu")}
    assert entries() == {one for row in cuda_instances.MODULES for one in entries_of(row, UNITS)}
    assert {Entry("cuda/quantize_tensor.cu", name) for name in ("find_largest", "quantize_tensor")} < entries()


def test_what_did_not_run_is_named() -> None:
    run = sanitize.planned("sm90")
    run.say_what_is_missing(rows_for(run.table, run.device))
    for kernel in KERNELS:
        assert f"{kernel} fits this device and launched nothing" in run.wrong
    for file, function in entries():
        assert any(text.startswith(f"csrc/{file}: {function} of ") for text in run.wrong)


def test_a_size_that_a_row_refuses_is_wrong() -> None:
    run = sanitize.planned("sm90")
    widened = next(case for case in cases(run.table, run.chip) if case.problem.scheme == "w8a16_fp8")
    odd = Case(replace(widened.problem, k=1040), (1,), ("hopper_w8a16",))
    run.run_case(odd, ["hopper_w8a16"])
    assert len(run.wrong) == 1
    assert "hopper_w8a16 refuses" in run.wrong[0]
    assert "accepts.k.multiple_of: wanted multiple of 32, found 1040" in run.wrong[0]


def test_what_a_kernel_raises_is_wrong_and_the_next_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run = sanitize.planned("sm90")

    def fails() -> str:
        raise IndexError("out of range")

    run.guarded("one", fails)
    run.guarded("two", lambda: "well")
    assert run.wrong == ["one: raised IndexError: out of range"]
    assert capsys.readouterr().out == "two: 0 launches\n"


def test_kinds_are_told_apart_by_all_but_how_k_is_split() -> None:
    alike = [Stream(8, stages, split) for stages, split in ((12, 1), (5, 4), (8, 2))]
    assert one_of_each_kind([*alike, Stream(16, 12, 2)]) == [Stream(16, 12, 2), alike[0], alike[1]]
