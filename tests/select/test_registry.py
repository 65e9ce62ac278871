"""The registry of kernels: ids from files and entry points, signatures from source, nothing imported."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kerneltable.errors import KernelTableError
from kerneltable.kernels import registry

FOLDER = Path(registry.__file__).parent
KERNEL = """
class {name}:
    def __init__(self, problem, weight, scale=None, *, ub, shape=(1,), **more):
        raise RuntimeError("never run")
"""


def announce(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: tuple[str, str], dist: str = "plugin") -> None:
    """Install a distribution that announces kernels, as (id, module:class) lines."""
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    text = "\n".join(f"{id} = {target}" for id, target in lines)
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{text}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_ids_are_the_kernel_files_of_the_folder() -> None:
    files = {file.stem for file in FOLDER.glob("*.py")} - {"__init__", "contract", "registry"}
    assert set(registry.ids()) == {name for name in files if not name.startswith("_")}
    assert "reference" in registry.ids()
    assert not {"contract", "registry", "__init__"} & set(registry.ids())


def test_signatures_cover_every_id() -> None:
    assert tuple(registry.signatures()) == registry.ids()


def test_signatures_are_read_without_importing_torch() -> None:
    code = (
        "import sys; from kerneltable.kernels import registry; found = registry.signatures();"
        "assert found['reference']['weight'] is True;"
        "assert not {'torch', 'triton', 'yaml', 'jsonschema', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(FOLDER.parent.parent)})


@pytest.mark.parametrize("id", registry.ids())
def test_the_signature_read_from_source_is_the_real_one(id: str) -> None:
    pytest.importorskip("torch")
    try:
        found = registry.load(id)
    except ImportError as error:
        pytest.skip(f"{id} cannot be imported here: {error}")
    real = list(inspect.signature(found.__init__).parameters.values())[2:]
    named = [p for p in real if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p for p in named if p.name not in (registry.CHIP, registry.FEATURES, registry.PACKED)]
    assert registry.signatures()[id] == {p.name: p.default is p.empty for p in named}


def test_an_id_that_is_not_registered_is_refused_with_the_nearest() -> None:
    with pytest.raises(KernelTableError, match="kernel 'referense' is not registered; did you mean 'reference'"):
        registry.load("referense")


@pytest.mark.parametrize(
    "id", ["contract", "registry", "__init__", "os", "../registry", "kerneltable.kernels.reference"]
)
def test_what_is_no_kernel_is_never_loaded(id: str) -> None:
    with pytest.raises(KernelTableError, match="is not registered"):
        registry.load(id)


@pytest.mark.parametrize("module", ["solo", "pack", "pack.inner"])
def test_an_announced_kernel_is_found_and_read_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    file = tmp_path / {"solo": "solo.py", "pack": "pack/__init__.py", "pack.inner": "pack/inner.py"}[module]
    file.parent.mkdir(exist_ok=True)
    (file.parent / "__init__.py").touch()
    file.write_text(f"LOADED = []\n{KERNEL.format(name='Mine')}")
    announce(monkeypatch, tmp_path, ("mine", f"{module}:Mine"))
    sys.modules.pop(module, None)
    assert "mine" in registry.ids()
    assert registry.signatures()["mine"] == {"weight": True, "scale": False, "ub": True, "shape": False}
    assert module not in sys.modules
    assert registry.load("mine").__name__ == "Mine"
    for name in ("solo", "pack", "pack.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def Kernel(): ...", "a class Kernel with its own __init__ was wanted"),
        ("class Kernel: ...", "a class Kernel with its own __init__ was wanted"),
        ("class Kernel(: ...", "its source is no Python"),
        ("\0", "its source is no Python"),
    ],
)
def test_an_announced_kernel_of_another_shape_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "odd_kernel_module.py").write_text(source)
    announce(monkeypatch, tmp_path, ("odd", "odd_kernel_module:Kernel"))
    with pytest.raises(KernelTableError) as caught:
        registry.signatures()
    assert "kernel 'odd'" in str(caught.value)
    assert words in str(caught.value)


def test_an_announced_kernel_without_its_class_is_refused_when_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty_kernel_module.py").write_text("Kernel = 3")
    announce(monkeypatch, tmp_path, ("odd", "empty_kernel_module"))
    with pytest.raises(KernelTableError, match="empty_kernel_module has no class Kernel"):
        registry.load("odd")


def test_an_announced_kernel_without_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    announce(monkeypatch, tmp_path, ("odd", "no_such_module_here.inner:Kernel"))
    with pytest.raises(KernelTableError, match=r"no Python source of module 'no_such_module_here\.inner' was found"):
        registry.signatures()


def test_an_id_that_two_packages_announce_is_refused_with_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    announce(monkeypatch, tmp_path / "a", ("mine", "x:K"), dist="first")
    announce(monkeypatch, tmp_path / "b", ("mine", "y:K"), dist="second")
    with pytest.raises(
        KernelTableError, match=r"kernel 'mine' is announced by package '.*' and by '.*'; an id belongs"
    ):
        registry.ids()


def test_a_shipped_id_cannot_be_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    announce(monkeypatch, tmp_path, ("reference", "x:K"))
    with pytest.raises(KernelTableError, match="announced by package 'plugin' and by kerneltable itself"):
        registry.ids()


def test_an_entry_point_without_a_distribution_has_an_unknown_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    def entries(**_: Any) -> list[importlib.metadata.EntryPoint]:
        return [importlib.metadata.EntryPoint("reference", "x:K", registry.GROUP)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entries)
    with pytest.raises(KernelTableError, match="package 'unknown'"):
        registry.ids()
