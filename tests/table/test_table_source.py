"""Files: opened once, regular, bounded, and writable by nobody else."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from table_samples import TABLES, codes

import kerneltable
from kerneltable.errors import ConfigError
from kerneltable.table import check_table, load_table
from kerneltable.table.locate import shipped
from kerneltable.table.report import Report
from kerneltable.table.source import LARGEST_FILE, character_in, from_file, from_text

OVERRIDE = 'override: 1\ndisable: [{kernel: fast, reason: x, until: "2099-01-01"}]\n'
SMALL = TABLES / "good" / "small.yaml"


@pytest.fixture
def override(tmp_path: Path) -> Path:
    path = tmp_path / "override.yaml"
    path.write_text(OVERRIDE)
    path.chmod(0o644)
    return path


def findings_of(path: str | Path) -> list[str]:
    table, findings = check_table(SMALL, [path])
    assert table is None or not findings
    return codes(findings)


def test_an_override_of_ones_own_is_read(override):
    table, findings = check_table(SMALL, [override])
    assert findings == ()
    assert table is not None
    assert [layer.name for layer in table.layers] == [str(SMALL), str(override)]
    assert table.denials[0].mark.file == str(override)


def test_a_symbolic_link_to_a_good_file_is_read(tmp_path, override):
    link = tmp_path / "..data"
    link.symlink_to(override)
    assert findings_of(link) == []


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
def test_an_override_that_others_can_write_is_refused(override, mode):
    override.chmod(mode)
    assert findings_of(override) == ["KT122"]


def test_a_table_that_the_group_can_write_is_read(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_bytes(SMALL.read_bytes())
    path.chmod(0o664)
    assert check_table(path)[1] == ()


def test_a_link_to_a_file_that_others_can_write_is_refused(tmp_path, override):
    override.chmod(0o666)
    link = tmp_path / "link.yaml"
    link.symlink_to(override)
    assert findings_of(link) == ["KT122"]


def test_an_override_of_another_user_is_refused(override, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(override).st_uid + 4711)
    if os.stat(override).st_uid == 0:
        assert findings_of(override) == []  # root's files are trusted by everybody
        os.chown(override, 1, 1)
    assert findings_of(override) == ["KT122"]


def test_where_files_have_no_owners_the_check_is_left_out(override, monkeypatch):
    override.chmod(0o666)
    monkeypatch.delattr(os, "geteuid")
    assert findings_of(override) == []


def test_a_folder_that_everybody_can_write_is_refused_unless_sticky(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    path = folder / "override.yaml"
    path.write_text(OVERRIDE)
    folder.chmod(0o777)
    assert findings_of(path) == ["KT122"]
    folder.chmod(0o777 | stat.S_ISVTX)
    assert findings_of(path) == []


def test_a_pipe_does_not_block(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert findings_of(pipe) == ["KT121"]


def test_what_is_not_a_file_is_refused(tmp_path):
    assert findings_of(tmp_path) == ["KT121"]
    assert findings_of("/dev/zero") == ["KT121"]
    assert findings_of(tmp_path / "missing.yaml") == ["KT121"]
    assert findings_of("a\0b") == ["KT121"]
    assert findings_of("") == ["KT121"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert findings_of(tmp_path / "s") == ["KT121"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux only")
def test_a_file_that_cannot_be_read_is_a_finding():
    assert codes(check_table("/proc/self/mem")[1]) == ["KT121"]


def test_a_huge_sparse_file_is_refused_unread(tmp_path):
    path = tmp_path / "sparse.yaml"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)
    assert findings_of(path) == ["KT102"]


def test_the_size_is_taken_to_the_bound_and_not_beyond(tmp_path):
    for extra, expected in ((0, []), (1, ["KT102"])):
        path = tmp_path / f"{extra}.yaml"
        path.write_bytes(OVERRIDE.encode().ljust(LARGEST_FILE + extra, b"\n"))
        assert findings_of(path) == expected
    report = Report()
    assert from_text("t", "#" * (LARGEST_FILE + 1), report).text is None
    assert codes(tuple(report.findings)) == ["KT102"]


def test_a_file_that_grew_since_it_was_measured_is_refused(override, monkeypatch):
    grown = override.read_bytes().ljust(LARGEST_FILE + 1, b"\n")
    facts = os.stat(override)
    override.write_bytes(grown)
    monkeypatch.setattr(os, "fstat", lambda _: facts)
    assert findings_of(override) == ["KT102"]


def test_the_digest_is_that_of_the_bytes(override):
    from hashlib import sha256

    source = from_file(override, Report(), strict=True)
    assert source.layer.sha256 == sha256(override.read_bytes()).hexdigest()


def test_a_byte_that_is_not_utf8_is_placed():
    report = Report()
    path = TABLES / "bad" / "KT103-latin-1.yaml"
    assert from_file(path, report, strict=False).text is None
    assert report.findings[0].message == "byte 0xe8 is not UTF-8"
    assert report.findings[0].mark.line == 37


@pytest.mark.parametrize(("text", "name"), [
    ("a\tb", "U+0009 (tab)"), ("a\x00", "U+0000 (NUL)"), ("\u200b", "U+200B (zero width space)"),
    ("\x01", "U+0001 (no printable character)"),
])  # fmt: skip
def test_a_hidden_character_is_named(text, name):
    assert character_in(text) == name


@pytest.mark.parametrize("text", ["plain", "é", "日本", "😀"])
def test_a_visible_character_is_fine(text):
    assert character_in(text) is None


# --- Where the shipped files are


def test_the_working_directory_is_never_looked_at(tmp_path, monkeypatch):
    (tmp_path / "dispatch.yaml").write_text("not: a table\n")
    monkeypatch.chdir(tmp_path)
    assert load_table().layers[0].text.startswith("# yaml-language-server")


def test_packaged_data_comes_before_the_checkout(tmp_path):
    package = tmp_path / "engine" / "kerneltable"
    (package / "_data").mkdir(parents=True)
    (tmp_path / "dispatch.yaml").write_text("checkout")
    assert shipped("dispatch.yaml", package=package).read_text() == "checkout"
    (package / "_data" / "dispatch.yaml").write_text("packaged")
    assert shipped("dispatch.yaml", package=package).read_text() == "packaged"


def test_a_broken_installation_says_where_it_looked(tmp_path):
    with pytest.raises(ConfigError, match="missing from this installation; looked at ") as caught:
        shipped("dispatch.yaml", package=tmp_path / "a" / "b")
    assert caught.value.findings[0].code == "KT121"
    assert caught.value.findings[0].help == "install kerneltable again"


def test_the_table_loads_from_a_zip_file(tmp_path):
    package = Path(str(files("kerneltable")))
    archive = tmp_path / "kerneltable.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in [*package.glob("*.py"), *package.glob("model/*.py"), *package.glob("table/*.py")]:
            file.write(path, f"kerneltable/{path.relative_to(package)}")
        for name in ("dispatch.yaml", "schema/dispatch.schema.json", "schema/override.schema.json"):
            file.writestr(f"kerneltable/_data/{name}", shipped(*name.split("/")).read_bytes())
    program = "import kerneltable.table as t; print(t.__file__, t.load_table().version)"
    environment = {**os.environ, "PYTHONPATH": str(archive)}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "kerneltable.zip" in said.stdout
    assert said.stdout.strip().endswith("1")


def test_a_zip_without_the_table_is_a_finding(tmp_path):
    archive = tmp_path / "empty.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("kerneltable/__init__.py", "")
    with pytest.raises(ConfigError, match="missing from this installation"):
        shipped("dispatch.yaml", package=zipfile.Path(archive, "kerneltable/"))


def test_reading_imports_neither_torch_nor_triton_nor_rich():
    program = (
        "import sys; from kerneltable.table import load_table; load_table();"
        "print(sorted({'torch', 'triton', 'rich', 'numpy', 'requests'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(kerneltable.__file__).parent.parent)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_reading_a_hostile_override_opens_runs_and_connects_to_nothing(tmp_path):
    """An audit hook sees every import, process, connection and file that Python opens."""
    hostile = (
        "override: 1\n$schema: http://127.0.0.1:9/x\n$ref: file:///etc/passwd\n"
        "kernels: {os.system: {accepts: {m: {max: 1}}}, ../../evil: {}}\n"
        "disable: [{kernel: 'http://127.0.0.1:9/', reason: '$(touch x)'}]\n"
    )
    program = f"""
import sys
from kerneltable.table.load import read
read({str(SMALL)!r}, [("warm.yaml", "override: 1\\nkernel: 1\\n")])
seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args[:1]))))
table, findings = read({str(SMALL)!r}, [("hostile.yaml", {hostile!r})])
bad = [e for e in seen if e[0].split(".")[0] in ("socket", "subprocess", "exec", "import", "os", "urllib")]
ours = ("schema.json", "small.yaml", "(3,)")  # 3: the table's own descriptor, opened already
opened = [e for e in seen if e[0] == "open" and not any(name in e[1] for name in ours)]
print(table, len(findings) >= 4, [e for e in bad if e[0] not in ("os.listdir", "os.scandir")], opened)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(kerneltable.__file__).parent.parent)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "None True [] []"
