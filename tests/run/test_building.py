"""Compiling ahead of time: what a build leaves in a folder is found where nothing may be compiled, for every chip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kerneltable.errors import KernelTableError, KernelUnavailable
from kerneltable.model import Problem, Table
from kerneltable.ops import cuda_code, cuda_instances, nvrtc
from kerneltable.ops.cuda_chip import cuda_chip
from kerneltable.ops.cuda_code import compiled, load
from kerneltable.ops.settings import CompileSettings, activated
from kerneltable.run.checks.building import (
    build,
    chips_of,
    cuda_instances_of,
    cuda_jobs,
    host_jobs,
    missing_compiler,
    products_of,
    rows_with_code,
)
from kerneltable.run.place import chip_for
from kerneltable.select import device, select
from kerneltable.table import load_table

NO_NVRTC = nvrtc.find_nvrtc() if isinstance(nvrtc.find_nvrtc(), str) else ""
needs_nvrtc = pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC or "NVRTC is here")
SHAPE = products_of([(4096, 7168)], 132)
CHIP = "override: 1\nplatforms: {cuda: {architectures: {sm129: {like: sm120}}}}\n"


@pytest.fixture(scope="module")
def shipped() -> Table:
    return load_table()


@pytest.fixture(scope="module")
def with_sm129() -> Table:
    return load_table(overrides=[("a chip that nobody has", CHIP)])


@needs_nvrtc
def test_what_was_built_is_found_without_a_compiler(
    shipped: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = cuda_jobs(shipped, "sm90", cuda_instances_of(["hopper_fp8_block"], SHAPE), 1)
    for built in build(jobs, CompileSettings(folder=tmp_path / "built"), 1):
        assert (built.errors, built.count(fresh=True)) == ((), 1)
    forbidden = CompileSettings(folder=tmp_path / "empty", prefilled=(tmp_path / "built",), compile=False)
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: "NVRTC is not here")
    chip = cuda_chip(shipped.platforms["cuda"].architectures["sm90"], 132)
    for job in jobs:
        binary = compiled(job.instances[0], chip, forbidden)
        assert (binary.content[:4], binary.fresh) == (b"\x7fELF", False)
    other = next(one for one in cuda_instances.instances("hopper_w8a16", SHAPE))
    with pytest.raises(KernelUnavailable, match="`kerneltable build` makes them ahead of time"):
        compiled(other, chip, forbidden)


@needs_nvrtc
def test_a_second_build_compiles_nothing_and_two_processes_build_the_same(shipped: Table, tmp_path: Path) -> None:
    asked = cuda_instances_of(["hopper_w8a16"], SHAPE)
    jobs, settings = cuda_jobs(shipped, "sm90", asked, 3), CompileSettings(folder=tmp_path)
    first, second = (list(build(jobs, settings, processes)) for processes in (2, 1))
    sizes = [len(job.instances) for job in jobs]
    assert [built.count(fresh=True) for built in first] == sizes
    assert [built.count(fresh=False) for built in second] == sizes
    for one, other in zip(first, second, strict=True):
        assert [outcome.size for outcome in one.outcomes] == [outcome.size for outcome in other.outcomes]


@needs_nvrtc
@pytest.mark.slow
def test_every_source_compiles_for_every_architecture_whose_rows_launch_it(shipped: Table, tmp_path: Path) -> None:
    names = list(shipped.platforms["cuda"].architectures)
    asked = cuda_instances_of(rows_with_code(shipped, names), SHAPE)
    jobs = [job for name in names for job in cuda_jobs(shipped, name, asked, 1)]
    for kernel in asked:
        admitted = {chip.name for chip in chips_of(shipped, shipped.kernels[kernel], ["cuda"])}
        assert admitted == {job.architecture for job in jobs if kernel in job.kernels}
    done = list(build(jobs, CompileSettings(folder=tmp_path)))
    assert {(built.job.file, built.job.architecture): built.errors for built in done if built.errors} == {}
    assert len(done) == len(jobs) > len(asked)


def test_a_made_up_chip_that_is_like_another_is_selected_for_all_that_the_other_is(with_sm129: Table) -> None:
    for scheme in with_sm129.schemes:
        problem = Problem(scheme, n=4096, k=7168)
        old, new = (select(with_sm129, device(name, with_sm129), problem) for name in ("sm120", "sm129"))
        assert [(c.kernel, c.verdict) for c in new.candidates] == [(c.kernel, c.verdict) for c in old.candidates]
    found = rows_with_code(with_sm129, ["sm129"])
    assert found == rows_with_code(with_sm129, ["sm120"]) != []
    assert "hopper_fp8_block" not in found


@needs_nvrtc
def test_a_made_up_chip_that_is_like_another_has_its_code_and_passes_the_checks_of_a_launch(
    with_sm129: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = cuda_instances_of(rows_with_code(with_sm129, ["sm129"]), SHAPE)
    known, made_up = (cuda_jobs(with_sm129, name, asked, 1) for name in ("sm120", "sm129"))
    assert [(job.file, job.instances) for job in made_up] == [(job.file, job.instances) for job in known] != []
    launched: list[bytes] = []
    monkeypatch.setattr(cuda_code, "load_function", lambda cubin, *_, **__: launched.append(cubin))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(multi_processor_count=48))
    chip = chip_for(with_sm129, device("sm129", with_sm129), torch.device("cuda", 0))
    assert chip is not None
    assert (chip.name, chip.multiprocessors) == ("sm129", 48)
    with activated(CompileSettings(folder=tmp_path)):
        for job in made_up:
            load.__wrapped__(job.instances[0], chip, 0)
    assert [cubin[:4] for cubin in launched] == [b"\x7fELF"] * len(made_up)


def test_a_chip_that_the_table_does_not_describe_has_no_code(shipped: Table) -> None:
    unknown = device("cuda:13.0", shipped)
    assert chip_for(shipped, unknown, torch.device("cuda", 0)) is None
    assert chip_for(shipped, device("epyc-turin", shipped), torch.device("cpu")) is None


def test_rows_that_do_not_run_on_a_chip_are_not_built_for_it(shipped: Table) -> None:
    asked = cuda_instances_of(rows_with_code(shipped, ["sm90"]), SHAPE)
    assert rows_with_code(shipped, ["sm70"]) == cuda_jobs(shipped, "sm70", asked) == []
    assert not [job for job in cuda_jobs(shipped, "sm80", asked) if "hopper_w8a16" in job.kernels]
    assert host_jobs(replace(shipped, kernels={}, answers={})) == []
    assert missing_compiler([]) == ""


@pytest.mark.parametrize("fault", ["a file", "writable by others"])
def test_a_folder_whose_code_nobody_would_trust_is_not_filled(shipped: Table, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "cache"
    if fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(KernelTableError, match="cannot be kept"):
        list(build(host_jobs(shipped), CompileSettings(folder=folder)))
