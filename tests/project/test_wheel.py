"""The wheel: pure Python, with the table, the schemas and the device code, and it works away from the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*command, cwd=None):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(ROOT))
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_is_pure_python_and_carries_the_data(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = "kerneltable/_data"
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    expected = {f"{data}/dispatch.yaml"}
    expected |= {f"{data}/{t}" for t in tracked if t.startswith(("schema/", "csrc/")) and (ROOT / t).exists()}
    expected |= {t.removeprefix("engine/") for t in tracked if t.startswith("engine/") and (ROOT / t).exists()}
    assert {n for n in names if ".dist-info/" not in n} == expected


def test_an_installed_wheel_checks_its_own_table_from_another_folder(wheel, tmp_path):
    """A clean environment; the dependencies are lent by path, so that nothing is downloaded."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel))
    site = next((home / "lib").glob("python*/site-packages"))
    lent = next(p for p in sys.path if p.endswith("site-packages"))
    for package in ("yaml", "_yaml", "jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "attrs"):
        (site / package).symlink_to(Path(lent) / package)
    (site / "typing_extensions.py").symlink_to(Path(lent) / "typing_extensions.py")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = run(str(home / "bin" / "kerneltable"), "check", cwd=elsewhere)
    assert "no findings" in out
    where = run(str(python), "-c", "import kerneltable; print(kerneltable.__file__)", cwd=elsewhere)
    assert where.startswith(str(site))
