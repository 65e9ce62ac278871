"""Layers that installed packages bring, below the overrides, read without running the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from table_samples import TABLES

from kerneltable.table import check_table, load_table
from kerneltable.table.plugins import FILE, GROUP, plugin_files

LAYER = 'override: 1\nkernels: {triton_w8a16: {why: "the plugin %s says so"}}\n'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, text: str | None, *, value: str | None = None) -> Path:
    """A package with a layer, and code that must never run."""
    package = site / name.replace("-", "_")
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('a plugin was imported')\n")
    if text is not None:
        (package / "data" / FILE).write_text(text)
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmain = {value or f'{package.name}.data'}\n")
    return package / "data" / FILE


def why(table) -> str:
    return table.kernels["triton_w8a16"].why


def test_without_plugins_the_shipped_table_is_the_only_layer() -> None:
    assert [layer.name for layer in load_table().layers][:1] == ["dispatch.yaml"]
    assert len(load_table(plugins=False).layers) == 1


def test_a_plugin_lies_over_the_shipped_table_and_is_never_imported(site: Path) -> None:
    file = install(site, "kt-one", LAYER % "one")
    table = load_table()
    assert why(table) == "the plugin one says so"
    assert [layer.name for layer in table.layers] == ["dispatch.yaml", str(file)]
    assert table.marks["kernels", "triton_w8a16", "why"].file == str(file)
    assert "kt_one" not in sys.modules


def test_plugins_are_laid_in_the_order_of_their_names_and_overrides_win(site: Path) -> None:
    install(site, "kt-two", LAYER % "two")
    install(site, "kt-one", LAYER % "one")
    assert why(load_table()) == "the plugin two says so"
    above = ("deploy.yaml", 'override: 1\nkernels: {triton_w8a16: {why: "the deployment says so"}}\n')
    assert why(load_table(None, [above])) == "the deployment says so"


def test_plugins_can_be_left_out_and_do_not_touch_a_table_given_by_path(site: Path) -> None:
    install(site, "kt-one", LAYER % "one")
    assert "plugin" not in why(load_table(plugins=False))
    assert len(load_table(TABLES / "good" / "small.yaml").layers) == 1


@pytest.mark.parametrize(("text", "value"), [(None, None), ("override: 1\nnothing: 1\n", None), (None, "not_there.x")])
def test_a_broken_plugin_is_a_finding_that_names_its_file(site: Path, text: str | None, value: str | None) -> None:
    install(site, "kt-one", text, value=value)
    table, findings = check_table()
    assert table is None
    assert [finding.mark.file for finding in findings] == list(plugin_files())
    assert FILE in findings[0].mark.file
