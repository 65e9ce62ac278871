"""The package itself: light to import, its names, and which layer may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kerneltable
from kerneltable.model import Problem

ENGINE = Path(kerneltable.__file__).parent
HEAVY = {"torch", "triton", "yaml", "jsonschema", "rich", "numpy"}
MAY_IMPORT = {
    "model": set(),
    "errors.py": {"model"},
    "formats.py": set(),
    "names.py": set(),
    "table": {"model", "errors", "formats", "names"},
    "select": {"model", "errors", "formats", "names"},
}
STANDARD_ONLY = {"select", "model", "errors.py", "formats.py", "names.py"}


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, function bodies included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def files_of(part: str) -> list[Path]:
    place = ENGINE / part
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part: str) -> None:
    allowed = {*MAY_IMPORT[part], part.removesuffix(".py")}
    for file in files_of(part):
        inner = {name.split(".")[1] for name in imported(file) if name.startswith("kerneltable.")}
        assert inner <= allowed, f"{file.name} imports {inner - allowed}"


@pytest.mark.parametrize("part", sorted(STANDARD_ONLY))
def test_deciding_needs_the_standard_library_only(part: str) -> None:
    for file in files_of(part):
        outer = {name.split(".")[0] for name in imported(file)} - {"kerneltable"}
        assert outer <= set(sys.stdlib_module_names), file.name


def test_one_module_imports_yaml_and_one_jsonschema() -> None:
    for library in ("yaml", "jsonschema"):
        users = [file.name for file in ENGINE.rglob("*.py") if any(n.split(".")[0] == library for n in imported(file))]
        assert len(users) == 1, users


def test_nothing_below_cli_reads_the_environment() -> None:
    for file in ENGINE.rglob("*.py"):
        if "cli" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert "os.environ" not in text, file.name
            assert "getenv" not in text, file.name


def after(code: str) -> set[str]:
    """The heavy modules that are loaded after running code in a fresh interpreter."""
    code += f"\nimport sys; print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ENGINE.parent)}
    )
    return set(ast.literal_eval(ran.stdout.strip().splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert after("import kerneltable") == set()
    assert after("import kerneltable as kt; kt.Problem('x', n=1, k=1); kt.select; kt.ConfigError") == set()


def test_selecting_on_the_shipped_table_never_loads_torch() -> None:
    code = (
        "import kerneltable as kt\n"
        "table = kt.load_table()\n"
        "problem = kt.Problem('fp8_block_w8a8', n=4096, k=4096)\n"
        "assert kt.select(table, kt.device('h200'), problem).kernel is not None\n"
        "assert kt.select(table, kt.device('sm121', table), problem).kernel is not None\n"
    )
    assert after(code) <= {"yaml", "jsonschema"}


def test_every_public_name_is_there() -> None:
    pytest.importorskip("torch")
    for name in kerneltable.__all__:
        assert callable(getattr(kerneltable, name)), name
    assert set(kerneltable.__all__) <= set(dir(kerneltable))
    assert kerneltable.Problem is Problem


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kerneltable' has no attribute 'selekt'"):
        _ = kerneltable.selekt  # type: ignore[attr-defined]


def test_device_takes_packages_and_a_table() -> None:
    table = kerneltable.load_table()
    assert kerneltable.device("h200", table, packages={"torch": "2.11"}).packages == {"torch": "2.11"}
    with pytest.raises(kerneltable.ProblemError, match="did you mean 'h200'"):
        kerneltable.device("h20o0", table)
