"""The probe: every kind of machine, played by small stand-ins for torch, and everything that can break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from handmade import deny, kernel, needs, route, table

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Step, Table
from kerneltable.run import probe
from kerneltable.run.probe import current_device, read_cpuinfo

TABLE = table()


def broken(*_: Any) -> Any:
    raise RuntimeError("driver too old")


def torch_of(cuda: Any = None, xpu: Any = None, hip: str | None = None) -> Any:
    none = SimpleNamespace(is_available=lambda: False)
    ops = SimpleNamespace(_C=SimpleNamespace(gemm=1))
    return SimpleNamespace(cuda=cuda or none, xpu=xpu or none, version=SimpleNamespace(hip=hip), ops=ops)


def gpu(capability: Any = (9, 0), **facts: Any) -> Any:
    seen = {"name": "NVIDIA H200", "multi_processor_count": 132, "shared_memory_per_block_optin": 232448}
    properties = SimpleNamespace(**{**seen, "total_memory": 150 * 2**30, **facts})
    return SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 1,
        get_device_properties=lambda index: properties,
        get_device_capability=capability if callable(capability) else lambda index: capability,
    )


def intel(name: str) -> Any:
    properties = SimpleNamespace(name=name, total_memory=12 * 2**30)
    return SimpleNamespace(
        is_available=lambda: True, current_device=lambda: 0, get_device_properties=lambda index: properties
    )


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Device]:
    def run(torch: Any, made: Table = TABLE, index: int | None = None) -> Device:
        monkeypatch.setattr(probe, "_torch", torch if callable(torch) else lambda: torch)
        return current_device(made, index)

    return run


def test_a_cuda_gpu_is_measured_and_named_by_the_table(probed: Callable[..., Device]) -> None:
    found = probed(torch_of(gpu()))
    assert (found.platform, found.architecture, found.capability) == ("cuda", "sm90", (9, 0))
    assert (found.name, found.sm_count, found.shared_memory_kib, found.memory_gib) == ("NVIDIA H200", 132, 227, 150.0)
    assert found.index == 1
    assert probed(torch_of(gpu()), index=3).index == 3


@pytest.mark.parametrize(("torch", "count"), [(None, 0), (torch_of(), 0), (torch_of(gpu()), 2)])
def test_an_index_that_no_gpu_has_is_refused(probed: Callable[..., Device], torch: Any, count: int) -> None:
    def seen(index: int) -> Any:
        raise AssertionError("Invalid device id")

    if count:
        torch.cuda.get_device_properties, torch.cuda.device_count = seen, lambda: count
        torch.xpu.device_count = lambda: 0
    with pytest.raises(ProblemError, match=f"device 7: wanted a GPU that torch sees; found {count} here"):
        probed(torch, index=7)


def test_an_unknown_capability_stays_unknown(probed: Callable[..., Device]) -> None:
    found = probed(torch_of(gpu((13, 0))))
    assert (found.platform, found.architecture, found.capability) == ("cuda", None, (13, 0))


def test_facts_that_a_driver_does_not_give_stay_unknown(probed: Callable[..., Device]) -> None:
    found = probed(torch_of(gpu(shared_memory_per_block_optin=None, multi_processor_count="?", total_memory=None)))
    assert (found.architecture, found.sm_count, found.shared_memory_kib, found.memory_gib) == ("sm90", None, None, None)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("gfx942:sramecc+:xnack-", "gfx942"), ("gfx90a", "gfx90a"), ("gfx9", None), ("gfx9420", None), ("", None)],
)
def test_a_rocm_gpu_is_named_by_its_target_and_has_no_capability(
    probed: Callable[..., Device], target: str, wanted: str | None
) -> None:
    found = probed(torch_of(gpu((9, 4), name="AMD Instinct", gcnArchName=target), hip="6.4"))
    assert (found.platform, found.architecture, found.capability) == ("rocm", wanted, None)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Intel(R) Arc(TM) B580 Graphics", "bmg"),
        ("Intel(R) Graphics [0xe20b]", "bmg"),
        ("Intel(R) Data Center GPU Max 1550", "pvc"),
        ("Intel(R) Arc(TM) A770 Graphics", None),
        ("Intel(R) Graphics [0x1]", None),
    ],
)
def test_an_xpu_is_named_by_the_words_of_its_name(probed: Callable[..., Device], name: str, wanted: str | None) -> None:
    found = probed(torch_of(xpu=intel(name)))
    assert (found.platform, found.architecture, found.capability, found.name) == ("xpu", wanted, None, name)


@pytest.mark.parametrize(
    "torch",
    [
        broken,
        torch_of(),
        torch_of(SimpleNamespace(is_available=broken)),
        torch_of(gpu(broken)),
        torch_of(xpu=SimpleNamespace(is_available=lambda: True, current_device=broken)),
        SimpleNamespace(),
    ],
)
def test_a_machine_whose_gpu_cannot_be_asked_is_a_cpu(probed: Callable[..., Device], torch: Any) -> None:
    assert probed(torch).platform == "cpu"


def test_a_missing_platform_in_the_table_leaves_the_chip_unknown(probed: Callable[..., Device]) -> None:
    bare = replace(TABLE, platforms={}, answers={})
    assert probed(torch_of(gpu()), bare).architecture is None
    assert probed(torch_of(xpu=intel("Intel Max 1550")), bare).architecture is None
    assert probed(torch_of(), bare).architecture is None


def test_an_interrupt_is_not_swallowed(probed: Callable[..., Device]) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probed(interrupt)


AVX2 = "flags\t\t: fpu avx2 fma f16c bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"model name\t: EPYC\n{AVX2}\n", "x86-64-v3"),
        (f"{AVX512}\n", "x86-64-v4"),
        (f"{AVX512} amx_tile amx_bf16\n", "amx"),
        (f"{AVX512} amx_tile\n", "x86-64-v4"),
        ("flags : avx2\n", None),
        ("Features\t: fp asimd\n", "neon"),
        ("nothing", None),
    ],
)
def test_a_cpu_is_the_architecture_with_the_most_features_that_it_has(
    monkeypatch: pytest.MonkeyPatch, probed: Callable[..., Device], text: str, wanted: str | None
) -> None:
    monkeypatch.setattr(probe.Path, "read_text", lambda *_, **__: text)
    assert probed(torch_of()).architecture == wanted


@pytest.mark.parametrize(("machine", "wanted"), [("arm64", "neon"), ("riscv64", None)])
def test_without_cpuinfo_an_arm_machine_has_neon(
    monkeypatch: pytest.MonkeyPatch, probed: Callable[..., Device], machine: str, wanted: str | None
) -> None:
    monkeypatch.setattr(probe.Path, "read_text", broken)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert probed(torch_of()).architecture == wanted


def test_cpuinfo_is_read_for_the_first_processor() -> None:
    flags, name = read_cpuinfo("model name : A B\nflags : x y\n\nmodel name : C\nflags : z\n")
    assert (flags, name) == (frozenset({"x", "y"}), "A B")
    assert read_cpuinfo("") == (frozenset(), "cpu")


def asking(*names: str, key: str = "needs.packages") -> Table:
    rows = {"asks": kernel("asks", need=tuple(needs(key, name, None) for name in names))}
    return table(rows=rows)


def test_packages_that_the_table_asks_about_are_looked_up(probed: Callable[..., Device]) -> None:
    found = probed(torch_of(), asking("PyTest", "no-such-package-here"))
    assert found.packages["pytest"] == pytest.__version__
    assert "no-such-package-here" not in found.packages
    assert "kerneltable" in found.packages


def test_steps_and_denials_ask_about_packages_too(probed: Callable[..., Device]) -> None:
    step = Step("fast", (needs("when.packages", "pytest"),), TABLE.kernels["fast"].mark)
    assert "pytest" in probed(torch_of(), table(route("fp8", "cpu", step))).packages
    assert "pytest" in probed(torch_of(), table(denials=(deny("fast", needs("when.packages", "pytest")),))).packages
    assert "pytest" not in probed(torch_of(), TABLE).packages


def test_ops_are_looked_up_in_torch(probed: Callable[..., Device]) -> None:
    made = asking("_C::gemm", "_C::other", "_D::gemm", key="needs.ops")
    assert probed(torch_of(), made).ops == {"_C::gemm"}
    assert probed(broken, made).ops == frozenset()


def test_a_compiler_is_looked_up_on_the_path(monkeypatch: pytest.MonkeyPatch, probed: Callable[..., Device]) -> None:
    made = asking("tool::cxx", "tool::other", key="needs.ops")
    monkeypatch.setattr(probe.shutil, "which", lambda name: "/bin/g++" if name == "g++" else None)
    assert probed(torch_of(), made).ops == {"tool::cxx"}
    monkeypatch.setattr(probe.shutil, "which", lambda name: None)
    assert probed(torch_of(), made).ops == frozenset()


def test_the_real_machine_can_be_asked_with_the_shipped_table() -> None:
    torch = pytest.importorskip("torch")
    found = current_device()
    assert found.packages["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (found.platform == "cpu") == (not torch.cuda.is_available() and not torch.xpu.is_available())
