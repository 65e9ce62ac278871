"""Group D: devices, known and unknown, on the shipped table; docs/hard-cases.md says which cases other files hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kerneltable
from kerneltable.model import Device, Problem
from kerneltable.run import probe
from kerneltable.select import device, select, with_packages
from kerneltable.select.versions import capability_of
from kerneltable.table import load_table

TABLE = load_table()
CUDA = TABLE.platforms["cuda"].architectures
ASKED = [Problem(scheme, n=4096, k=4096) for scheme in TABLE.schemes]


def chosen(name: str, problem: Problem, installed: str = "") -> str:
    where = device(name, TABLE)
    kernel = select(TABLE, with_packages(where, installed) if installed else where, problem).kernel
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("installed", ["", "all"])
@pytest.mark.parametrize("problem", ASKED, ids=lambda p: p.scheme)
def test_d01_a_dgx_spark_gets_what_an_rtx_5090_gets_and_tiles_fit_its_99_kib(problem, installed):
    """That compiled kernels fit the shared memory of each chip is held by test_triton_compiles.py."""
    assert chosen("dgx-spark", problem, installed) == chosen("rtx-5090", problem, installed)
    assert CUDA["sm121"].shared_memory_kib == CUDA["sm120"].shared_memory_kib == 99


def test_d02_a_b300_is_of_family_10_and_a_thor_is_not():
    families = {name: CUDA[name].families for name in ("sm100", "sm103", "sm110", "sm120", "sm121")}
    assert families["sm103"] == families["sm100"] == ("sm10x",)
    assert families["sm110"] == ("sm11x",)
    assert families["sm121"] == families["sm120"] == ("sm12x",)
    assert device("jetson-thor", TABLE).architecture == "sm110"
    old_name = device(
        "cuda:10.1", TABLE
    )  # what CUDA 12 called it: a chip that nobody described, so portable rows alone
    assert old_name.architecture is None
    for problem in ASKED:
        for candidate in select(TABLE, with_packages(old_name, "all"), problem).candidates:
            place = TABLE.kernels[candidate.kernel].runs_on.get("cuda")
            assert candidate.refusals or (place is not None and place.portable)


@pytest.mark.parametrize("capability", ["10.7", "13.0", "20.1", "9.9", "99.99"])
def test_d03_an_unknown_chip_is_named_so_and_gets_portable_rows(capability):
    for problem in ASKED:
        answer = select(TABLE, with_packages(device(f"cuda:{capability}", TABLE), "all"), problem)
        assert answer.kernel is not None
        assert TABLE.kernels[answer.kernel].runs_on["cuda"].portable
        assert any(capability in note for note in answer.notes)


@pytest.mark.parametrize(
    "name", ["sm_90a", "sm90a", "sm90", "SM90", "compute_90", "9.0", "9.0a", "cuda:9.0", "H100", " h200 "]
)
def test_d04_every_spelling_of_9_0_is_one_chip(name):
    assert device(name, TABLE).architecture == "sm90"


@pytest.mark.parametrize(
    ("name", "wanted"), [("sm_100f", "sm100"), ("compute_120f", "sm120"), ("12.1", "sm121"), ("10.3f", "sm103")]
)
def test_d04_a_suffix_is_no_part_of_the_number(name, wanted):
    assert device(name, TABLE).architecture == wanted


@pytest.mark.parametrize("name", ["2.1", "1.2.1", "90", "sm9", "sm1210", "9.0+PTX", "sm_90x", "12", "0.9.0", "9.00.1"])
def test_d04_what_only_contains_a_name_is_refused(name):
    with pytest.raises(kerneltable.ProblemError, match="unknown device"):
        device(name, TABLE)


def test_d04_capabilities_sort_as_numbers():
    texts = ["8.10", "8.9", "12.1", "9.0", "10.0", "8.0"]
    assert sorted(texts, key=lambda text: capability_of(text) or ()) == ["8.0", "8.9", "8.10", "9.0", "10.0", "12.1"]
    assert capability_of("9.0a") == (9, 0)


def test_d05_of_the_8_x_chips_only_8_9_has_fp8_and_only_8_0_and_8_7_have_the_large_shared_memory():
    facts = {name: (CUDA[name].fp8, CUDA[name].shared_memory_kib) for name in ("sm80", "sm86", "sm87", "sm89")}
    assert facts == {"sm80": (None, 163), "sm86": (None, 99), "sm87": (None, 163), "sm89": ("fn", 99)}
    for name in ("a100", "rtx-3090", "jetson-orin"):
        for problem in ASKED:
            assert TABLE.kernels[chosen(name, problem)].kind != "native"
    assert TABLE.kernels[chosen("rtx-4090", ASKED[0])].kind == "native"


@pytest.mark.parametrize("name", ["v100", "t4"])
def test_d06_a_chip_without_bf16_refuses_rows_that_need_it_by_name(name):
    assert "mma_bf16" not in CUDA[device(name, TABLE).architecture or ""].features
    problem = Problem("fp8_block_w8a8", n=4096, k=4096)
    answer = select(TABLE, with_packages(device(name, TABLE), "all"), problem)
    marlin = next(c for c in answer.candidates if c.kernel == "vllm_marlin_fp8")
    assert any(refusal.wanted == "mma_bf16" for refusal in marlin.refusals)
    assert answer.kernel == "reference"


def test_d06_a_t4_takes_the_f16_twin():
    half = Problem("fp8_block_w8a8", n=4096, k=4096, input="f16", output="f16")
    assert chosen("t4", half, "all") == "vllm_marlin_fp8_f16"
    assert chosen("v100", half, "all") == "reference"


@pytest.mark.parametrize("name", ["gfx942:sramecc+:xnack-", "mi300x"])
def test_d07_native_code_for_the_other_fp8_is_kept_from_cdna3_unless_it_converts(name):
    """The conversion itself is held code by code in the tests of to_fnuz."""
    assert TABLE.platforms["rocm"].architectures["gfx942"].fp8 == "fnuz"
    for problem in ASKED:
        answer = select(TABLE, with_packages(device(name, TABLE), "all"), problem)
        native = {c.kernel for c in answer.candidates if not c.refusals and TABLE.kernels[c.kernel].kind == "native"}
        assert native <= {"aiter_fp8_block"}


@pytest.mark.parametrize(("name", "fp8"), [("gfx950", "fn"), ("gfx1201", "fn"), ("gfx90a", None), ("gfx1151", None)])
def test_d08_each_amd_chip_has_its_own_fp8(name, fp8):
    assert TABLE.platforms["rocm"].architectures[name].fp8 == fp8


@pytest.mark.parametrize("name", ["gfx94", "gfx9", "gfx9420", "gfx942a", "gfx", "rocm:gfx94", "rocm:9.4"])
def test_d08_a_part_of_an_amd_name_is_no_name(name):
    with pytest.raises(kerneltable.ProblemError):
        device(name, TABLE)


@pytest.mark.parametrize("name", ["arc-b580", "max-1550", "xpu:graphics-0xe20b", "xpu:bmg"])
def test_d09_an_intel_chip_has_no_capability_and_its_ops_are_asked_for(name):
    where = device(name, TABLE)
    assert where.capability is None
    for problem in ASKED:
        for candidate in select(TABLE, with_packages(where, "all"), problem).candidates:
            place = TABLE.kernels[candidate.kernel].runs_on.get("xpu")
            numbers = [p for p in place.predicates if "capability" in p.key] if place else []
            assert candidate.refusals or not numbers
    problem = Problem("fp8_w8a8", n=4096, k=4096)
    assert chosen(name, problem) != "xpu_fp8_gemm"
    assert chosen(name, problem, "_xpu_C::fp8_gemm") == "xpu_fp8_gemm"


def machine(monkeypatch: pytest.MonkeyPatch, units: int, memory: int, order: tuple[tuple[int, int], ...]) -> None:
    def facts(index: int) -> Any:
        return SimpleNamespace(
            name=f"GPU {index}", multi_processor_count=units, shared_memory_per_block_optin=232448, total_memory=memory
        )

    cuda = SimpleNamespace(
        is_available=lambda: bool(order), current_device=lambda: 0, get_device_properties=facts,
        get_device_capability=lambda index: order[index],
    )  # fmt: skip
    torch = SimpleNamespace(
        cuda=cuda,
        xpu=SimpleNamespace(is_available=lambda: False),
        version=SimpleNamespace(hip=None),
        ops=SimpleNamespace(),
    )
    monkeypatch.setattr(probe, "_torch", lambda: torch)


def test_d11_the_size_of_a_slice_is_what_is_measured_and_not_what_the_name_has(monkeypatch):
    machine(monkeypatch, 16, 16 * 2**30, ((9, 0),))
    found = probe.current_device(TABLE)
    assert (found.architecture, found.sm_count, found.memory_gib) == ("sm90", 16, 16.0)


def test_d12_two_kinds_of_gpu_in_one_process_are_two_devices_with_their_own_kernels(monkeypatch):
    machine(monkeypatch, 132, 2**37, ((9, 0), (8, 0)))
    found = [probe.current_device(TABLE, index) for index in (0, 1)]
    assert [one.architecture for one in found] == ["sm90", "sm80"]
    assert [one.index for one in found] == [0, 1]
    answers = [select(TABLE, one, ASKED[0]).kernel for one in found]
    assert answers[0] != answers[1]


def test_d13_the_order_is_torchs_own_and_no_visible_gpu_is_a_cpu(monkeypatch):
    machine(monkeypatch, 132, 2**37, ((8, 0), (9, 0)))
    assert probe.current_device(TABLE, 1).architecture == "sm90"
    machine(monkeypatch, 132, 2**37, ())  # CUDA_VISIBLE_DEVICES="" or -1
    assert probe.current_device(TABLE).platform == "cpu"
    sources = [path.read_text(encoding="utf-8") for path in Path(kerneltable.__file__).parent.rglob("*.py")]
    assert not [text for text in sources if re.search(r"\bp?ynvml\b|nvidia-smi|CUDA_VISIBLE_DEVICES", text)]


def test_d14_answers_are_kept_by_all_that_makes_a_device(monkeypatch):
    """A process that is restored on another GPU asks again: nothing about the first one is kept for the second."""
    machine(monkeypatch, 132, 2**37, ((9, 0),))
    before = probe.current_device(TABLE)
    machine(monkeypatch, 108, 2**36, ((8, 0),))
    after = probe.current_device(TABLE)
    assert before != after
    assert select(TABLE, after, ASKED[0]).device == after
    assert select(TABLE, after, ASKED[0]).kernel == chosen("a100", ASKED[0])
    for name, value in (("index", 5), ("name", "x"), ("packages", {}), ("ops", frozenset({"a::b"}))):
        assert replace(after, **{name: value}) != after


IDENTITIES = json.loads((Path(__file__).parents[1] / "data" / "device_cases.json").read_text(encoding="utf-8"))["rows"]
NAMED = [
    row for row in IDENTITIES if row["platform"] == "cuda" and row.get("cc") and not row["id"].startswith("future")
]


@pytest.mark.parametrize("row", NAMED, ids=lambda row: row["id"])
def test_d18_every_identity_of_the_field_is_described_as_agreed(row):
    """What each of them gets is in tests/golden/selections.txt."""
    where = device(f"cuda:{row['cc'][0]}.{row['cc'][1]}", TABLE)
    assert where.architecture is not None
    chip = CUDA[where.architecture]
    assert chip.capability == tuple(row["cc"])
    if "smem_kb" in row:
        assert chip.shared_memory_kib == row["smem_kb"]
    if "fp8_native" in row:
        assert (chip.fp8 is not None) == row["fp8_native"]
    if "mx_native" in row:
        assert ("mma_mx" in chip.features) == row["mx_native"]


def test_d10_a_device_that_cannot_be_asked_is_never_assumed(monkeypatch):
    """More ways to fail are in test_probe.py."""

    def broken() -> Any:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(probe, "_torch", broken)
    found = probe.current_device(TABLE)
    assert (found.platform, found.capability) == ("cpu", None)
    nothing = Device("cuda", None, "no driver")
    for problem in ASKED:
        answer = select(TABLE, nothing, problem)
        assert answer.kernel is None or TABLE.kernels[answer.kernel].runs_on["cuda"].portable
