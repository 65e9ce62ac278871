"""Devices by name, by target and by capability; what is installed; facts as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import cpu, cuda, table, xpu
from hypothesis import given
from hypothesis import strategies as st

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Platform
from kerneltable.names import hint, nearest
from kerneltable.select import device, with_packages
from kerneltable.select.facts import from_facts, read_facts, to_facts
from kerneltable.select.versions import capability_of, distribution, numbers

TABLE = table()


@pytest.mark.parametrize(
    ("name", "platform", "architecture"),
    [
        ("h200", "cuda", "sm90"),
        ("H200", "cuda", "sm90"),
        (" DGX Spark ", "cuda", "sm121"),
        ("RTX_4090", "cuda", "sm89"),
        ("sm121", "cuda", "sm121"),
        ("cuda:sm121", "cuda", "sm121"),
        ("CUDA:SM121", "cuda", "sm121"),
        ("cuda:h200", "cuda", "sm90"),
        ("sm_90a", "cuda", "sm90"),
        ("compute_120f", "cuda", "sm120"),
        ("cuda:12.1", "cuda", "sm121"),
        ("12.1", "cuda", "sm121"),
        ("9.0a", "cuda", "sm90"),
        ("gfx942", "rocm", "gfx942"),
        ("gfx942:sramecc+:xnack-", "rocm", "gfx942"),
        ("rocm:gfx90a:sramecc+:xnack-", "rocm", "gfx90a"),
        ("MI300X", "rocm", "gfx942"),
        ("arc-b580", "xpu", "bmg"),
        ("cpu:x86-64-v3", "cpu", "x86-64-v3"),
        ("x86-64-v3", "cpu", "x86-64-v3"),
    ],
)
def test_a_name_finds_its_chip(name: str, platform: str, architecture: str) -> None:
    found = device(name, TABLE)
    assert (found.platform, found.architecture) == (platform, architecture)
    assert found.capability == TABLE.platforms[platform].architectures[architecture].capability


def test_an_unknown_capability_is_a_device_without_architecture() -> None:
    found = device("cuda:13.0", TABLE)
    assert (found.platform, found.architecture, found.capability) == ("cuda", None, (13, 0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h20O", "did you mean 'h200'"),
        ("sm130", "unknown device 'sm130'; did you mean 'sm"),
        ("dgx-sprak", "did you mean 'dgx-spark'"),
        ("gfx94", "did you mean 'gfx942'"),
        ("gfx9", "unknown device 'gfx9'"),
        ("cuda:gfx942", "unknown device 'cuda:gfx942' on platform 'cuda'"),
        ("cuda:0", "for a chip that the table does not describe say 'cuda:13.0'"),
        ("13.0", "unknown device '13.0'"),
        ("rocm:9.4", "unknown device 'rocm:9.4' on platform 'rocm'"),
        ("h200:a100", "unknown device 'h200:a100': a platform was wanted before ':'; found 'h200'; "),
        ("sm90:rocm", "a platform was wanted before ':'; found 'sm90'"),
        ("h200:", "a platform was wanted before ':'; found 'h200'"),
        ("9.0:x", "a platform was wanted before ':'; found '9.0'"),
        ("cuda:sm90:x", "unknown device 'cuda:sm90:x' on platform 'cuda'"),
        ("cuda:h200:xnack-", "unknown device 'cuda:h200:xnack-' on platform 'cuda'"),
        ("gfx942:a100", "a platform was wanted before ':'; found 'gfx942'"),
        ("gfx942:sramecc", "a platform was wanted before ':'; found 'gfx942'"),
        ("mi300x:xnack-", "a platform was wanted before ':'; found 'mi300x'"),
        ("quantum", "`kerneltable show platforms` lists the names"),
    ],
)
def test_an_unknown_name_is_refused_with_the_next_step(name: str, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        device(name, TABLE)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, None, 90])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ProblemError, match="a device is named by 1 to 100 characters"):
        device(name, TABLE)


def test_what_is_no_text_is_refused_by_its_type() -> None:
    step = "; kerneltable.current_device() describes the present one"
    with pytest.raises(ProblemError) as caught:
        device(Path("cpu"), TABLE)  # type: ignore[arg-type]
    assert str(caught.value).endswith(f", such as 'h200'; found pathlib.{type(Path()).__name__} 'cpu'{step}")
    with pytest.raises(ProblemError, match="; found NoneType 'None'; "):
        device(None, TABLE)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"; found '   '$"):
        device("   ", TABLE)


def test_a_name_on_two_platforms_must_say_which() -> None:
    twin = Platform("cuda2", cuda().architectures, {}, {}, cuda().mark)
    both = table(platforms={**TABLE.platforms, "cuda2": twin})
    with pytest.raises(ProblemError, match="exists on several platforms; say 'cuda:sm90' or 'cuda2:sm90'"):
        device("sm90", both)
    assert device("cuda2:sm90", both).platform == "cuda2"


def test_a_table_without_capabilities_has_no_unknown_capability() -> None:
    with pytest.raises(ProblemError) as caught:
        device("13.0", table(platforms={"cpu": cpu(), "xpu": xpu()}))
    assert "say '" not in str(caught.value)


def test_a_named_device_assumes_torch_what_comes_with_it_triton_and_this_project_only() -> None:
    assert set(device("h200", TABLE).packages) == {"torch", "triton", "kerneltable", "cuda-bindings"}
    assert set(device("mi300x", TABLE).packages) == {"torch", "triton", "kerneltable"}
    assert set(device("h200", TABLE).packages.values()) == {None}
    assert dict(device("h200", TABLE, packages={"torch": "2.11"}).packages) == {"torch": "2.11"}


def test_packages_and_ops_are_added() -> None:
    more = with_packages(device("h200", TABLE), " flashinfer, Deep_GEMM==2.1 ,_C::gemm")
    assert more.packages["flashinfer"] is None
    assert more.packages["deep-gemm"] == "2.1"
    assert more.packages["torch"] is None
    assert more.ops == {"_C::gemm"}
    assert not more.assume_all
    assert with_packages(more, "ALL").assume_all
    assert with_packages(more, "all,all").assume_all
    assert with_packages(FULL, "torch==2.13").packages["torch"] == "2.13"


@pytest.mark.parametrize("text", ["all,torch==2.13", "vllm, ALL", "all,"])
def test_all_beside_packages_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match="'all' was wanted alone, since it fits every version; found"):
        with_packages(device("h200", TABLE), text)


@pytest.mark.parametrize("text", ["vllm==0.25,VLLM==0.26", "deep_gemm,deep-gemm==2.1"])
def test_a_package_of_two_versions_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match=r"installed packages: '[a-z-]+': one version was wanted; found .* and "):
        with_packages(device("h200", TABLE), text)


@pytest.mark.parametrize("text", ["", "a,,b", "a==", "a>=2", "a b", "::x", "_C::", "../x", "-x", "a==x\n"])
def test_what_is_no_package_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match="comma list of NAME, NAME==VERSION or NAMESPACE::OP"):
        with_packages(device("h200", TABLE), text)


FULL = Device(
    "cuda", "sm90", "NVIDIA H200", (9, 0), {"torch": "2.11.0+cu130", "triton": None}, frozenset({"_C::gemm"}),
    sm_count=132, shared_memory_kib=227, memory_gib=139.8, index=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "known", [FULL, Device("cpu", "x86-64-v3"), Device("cuda", None, "?", (13, 0), assume_all=True)]
)
def test_facts_survive_the_way_to_json_and_back(known: Device) -> None:
    text = json.dumps({"format": 1, "device": to_facts(known)})
    assert read_facts(text, TABLE, "facts.json") == known
    assert from_facts(to_facts(known), TABLE) == known


def test_a_chip_that_was_unknown_elsewhere_is_looked_up_again() -> None:
    facts = {"platform": "cuda", "architecture": None, "capability": "12.1"}
    assert from_facts(facts, TABLE).architecture == "sm121"
    assert from_facts({**facts, "architecture": "sm_new"}, TABLE).architecture == "sm121"
    assert from_facts({**facts, "capability": "13.0"}, TABLE).architecture is None
    assert from_facts({"platform": "cpu", "architecture": "riscv"}, TABLE).architecture is None
    assert from_facts({"platform": "tpu", "architecture": "v5"}, TABLE).architecture is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([], "a JSON object was wanted; found []"),
        ({"device": 3, "format": 1}, "a JSON object was wanted; found 3"),
        ({"device": {}}, "format must be 1; found None"),
        ({}, "the fact 'platform' is missing"),
        ({"platfrom": "cuda"}, "unknown fact 'platfrom'; did you mean 'platform'"),
        ({"platform": 1}, "platform must be a text; found 1"),
        ({"platform": "cuda", "capability": 9.0}, 'capability must be a text such as "9.0", or null; found 9.0'),
        ({"platform": "cuda", "capability": "9"}, "capability must be"),
        ({"platform": "cuda", "packages": ["torch"]}, "packages must be an object"),
        ({"platform": "cuda", "packages": {"torch": 2}}, "packages must be an object"),
        ({"platform": "cuda", "ops": "x"}, "ops must be a list of texts"),
        ({"platform": "cuda", "assume_all": 1}, "assume_all must be true or false"),
        ({"platform": "cuda", "sm_count": -1}, "sm_count must be a whole number or null"),
        ({"platform": "cuda", "sm_count": True}, "sm_count must be a whole number or null"),
        ({"platform": "cuda", "memory_gib": float("nan")}, "memory_gib must be a number of at least 0"),
        ({"platform": "x" * 301}, "platform must be a text; found 'xxx"),
        ({"platform": "cuda", "architecture": 90}, "architecture must be a text or null"),
    ],
)
def test_facts_that_are_none_are_refused_by_name(facts: Any, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        from_facts(facts, TABLE, "facts.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("facts.json: ")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "\x00", "[" * 100_000])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match=r"facts\.json.*no JSON; write the file with `kerneltable env --json`"):
        read_facts(text, TABLE, "facts.json")


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("2.11.0+cu130", (2, 11)),
        ("2.12.0a0+git1", (2, 12)),
        ("v3.1", (3, 1)),
        ("unknown", ()),
        ("0.0", ()),
        ("1.2rc3", (1, 2)),
    ],
)
def test_a_version_is_its_leading_numbers(version: str, wanted: tuple[int, ...]) -> None:
    assert numbers(version) == wanted


@pytest.mark.parametrize("text", ["9", "9.", ".9", "a.b", "9.0b", "9.0 ", "9.0\n", "-9.0", "12345.0", "9.0.1", ""])
def test_what_is_no_capability_is_not_read(text: str) -> None:
    assert capability_of(text) is None


@given(major=st.integers(0, 99), minor=st.integers(0, 99))
def test_a_capability_is_read_back(major: int, minor: int) -> None:
    assert capability_of(f"{major}.{minor}") == (major, minor)


def test_distributions_have_one_spelling() -> None:
    assert {distribution(name) for name in ("Deep_GEMM", "deep-gemm", "deep.gemm", " deep__gemm")} == {"deep-gemm"}


def test_a_hint_is_the_nearest_name_or_all_names() -> None:
    assert nearest("H20O", ["h100", "h200"]) == "h200"
    assert nearest("zzz", ["h100"]) is None
    assert hint("zzz", ["b", "a"]) == "known: a, b"
    assert hint("zzz", []) == "none are known"
