"""The shape of the code itself: which room may import which, and how large a room may be."""

import ast
import re
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "engine" / "kerneltable"
ROOMS = ("cli", "run", "kernels", "ops", "select", "table")
MAY_IMPORT = {
    "cli": {"cli", "run", "kernels", "select", "table"},
    "run": {"run", "kernels", "ops", "select", "table"},
    "kernels": {"kernels", "ops"},
    "ops": {"ops"},
    "select": {"select"},
    "table": {"table"},
}
OUTSIDE = {  # the only rooms (or files) that may import these
    "yaml": {"table/nodes.py"},
    "jsonschema": {"table/schema.py"},
    "rich": {"cli"},
}
FILES = sorted(ENGINE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function; imports for type checking are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    parts = path.relative_to(ENGINE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", [f for f in FILES if room(f)], ids=lambda p: str(p.relative_to(ENGINE)))
def test_imports_point_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "kerneltable" and len(parts) > 1 and parts[1] in ROOMS:
            assert parts[1] in MAY_IMPORT[here], f"{path.relative_to(ENGINE)} imports {name}"


BUILT_ON_LAYERS = {"checkpoints": {"checkpoints"}, "checks": {"checks"}, "timing": {"timing", "checkpoints"}}
"""Rooms within run/, and which of them each may import; the layers themselves stand in run/ and import none."""


@pytest.mark.parametrize("path", sorted((ENGINE / "run").rglob("*.py")), ids=lambda p: str(p.relative_to(ENGINE)))
def test_layers_do_not_lean_on_what_is_built_on_them(path):
    inner = path.parent.name if path.parent.name != "run" else ""
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["kerneltable", "run"] and len(parts) > 2 and parts[2] in BUILT_ON_LAYERS:
            assert parts[2] in BUILT_ON_LAYERS.get(inner, set()), f"{path.relative_to(ENGINE)} imports {name}"


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_a_package_is_imported_in_one_room_only(package):
    users = {f.relative_to(ENGINE).as_posix() for f in FILES if any(n.split(".")[0] == package for n in imports(f))}
    allowed = OUTSIDE[package]
    assert users, f"nobody imports {package}"
    assert all(u in allowed or u.split("/")[0] in allowed for u in users), users


@pytest.mark.parametrize("here", ["table", "select"])
def test_deciding_never_imports_torch(here):
    for path in (ENGINE / here).rglob("*.py"):
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", "triton", "numpy"}, path.name


def test_environment_variables_are_read_in_cli_only():
    readers = {
        f.relative_to(ENGINE).as_posix()
        for f in FILES
        if re.search(r"os\.environ|os\.getenv|\bgetenv\(|\benviron\b", f.read_text())
    }
    assert all(r.startswith("cli/") for r in readers), readers


def test_no_room_is_larger_than_300_lines():
    large = {f.relative_to(ENGINE).as_posix(): n for f in FILES if (n := len(f.read_text().splitlines())) > 300}
    assert not large


def test_no_function_is_longer_than_50_lines():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                docstring = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)
                if lines > 50:
                    long[f"{path.relative_to(ENGINE).as_posix()}:{node.name}"] = lines
    assert not long


def test_no_work_is_left_open():
    marks = re.compile("TO" + "DO|FIX" + "ME|XX" + "X")
    assert not [f.name for f in FILES if marks.search(f.read_text())]
