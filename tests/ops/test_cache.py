"""The compiled-code cache: whole entries or none, verified before use, whatever happens around it."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from kerneltable.errors import KernelUnavailable
from kerneltable.ops import cache_entry
from kerneltable.ops.cache import fetch, find
from kerneltable.ops.cache_entry import Binary, Recipe, folder_fault, publish, read
from kerneltable.ops.settings import CompileSettings

RECIPE = Recipe("product", ".so", "0" * 64, "Linux-x86_64", "compiler 1")
CONTENT = bytes(range(256)) * 64


@pytest.fixture
def settings(tmp_path: Path) -> CompileSettings:
    return CompileSettings(folder=tmp_path / "cache", timeout_s=20)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> CompileSettings:
    """The settings of a container whose arbitrary user has no HOME and is in no list of users."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return CompileSettings()


class Builder:
    """Builds CONTENT and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return CONTENT


def never() -> bytes:
    raise AssertionError("built although the cache had it")


def filled(settings: CompileSettings) -> Path:
    return fetch(RECIPE, settings, lambda: CONTENT).path


def test_a_binary_is_built_once_and_then_found(settings: CompileSettings) -> None:
    build = Builder()
    first, second = fetch(RECIPE, settings, build), fetch(RECIPE, settings, never)
    assert (first.content, second, build.calls) == (CONTENT, first, 1)
    assert first.path.read_bytes() == CONTENT


def test_entries_are_for_their_owner_alone(settings: CompileSettings) -> None:
    path = filled(settings)
    modes = [place.stat().st_mode & 0o777 for place in (settings.home(), path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("change", ["source", "architecture", "compiler", "name", "suffix"])
def test_another_recipe_is_another_entry(settings: CompileSettings, change: str) -> None:
    filled(settings)
    other = replace(RECIPE, **{change: ".bin" if change == "suffix" else "f" * 64})
    assert other.entry != RECIPE.entry
    assert find(other, settings) is None


def test_an_entry_copied_to_another_recipes_place_is_not_loaded(settings: CompileSettings) -> None:
    other = replace(RECIPE, source="f" * 64)
    filled(settings).parent.rename(settings.home() / other.entry)
    assert read(settings.home() / other.entry, other) == "its manifest describes another binary"
    assert fetch(other, settings, lambda: b"other").content == b"other"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def spoil_truncated(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_first_bit(path: Path) -> None:
    flip(path, 0)


def spoil_last_bit(path: Path) -> None:
    flip(path, len(CONTENT) - 1)


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def spoil_writable_by_others(path: Path) -> None:
    path.chmod(0o666)


def spoil_folder_writable_by_others(path: Path) -> None:
    path.parent.chmod(0o777)


def spoil_manifest_missing(path: Path) -> None:
    (path.parent / cache_entry.MANIFEST).unlink()


def spoil_manifest_truncated(path: Path) -> None:
    manifest = path.parent / cache_entry.MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:40])


def spoil_manifest_of_other_shape(path: Path) -> None:
    (path.parent / cache_entry.MANIFEST).write_text("[1, 2]")


def spoil_manifest_of_other_compiler(path: Path) -> None:
    manifest = path.parent / cache_entry.MANIFEST
    manifest.write_text(manifest.read_text().replace("compiler 1", "compiler 2"))


def spoil_binary_is_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_binary_is_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def spoil_entry_is_a_file(path: Path) -> None:
    (path.parent / cache_entry.MANIFEST).unlink()
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("not a folder")


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
def test_a_spoiled_entry_is_rebuilt_and_never_loaded(settings: CompileSettings, spoil) -> None:
    path = filled(settings)
    spoil(path)
    assert find(RECIPE, settings) is None
    build = Builder()
    again = fetch(RECIPE, settings, build)
    assert (again.content, build.calls, again.path) == (CONTENT, 1, path)
    assert fetch(RECIPE, settings, never).content == CONTENT
    assert [p.name for p in settings.home().iterdir() if p.is_dir()] == [RECIPE.entry]


def test_every_flipped_bit_of_a_small_binary_is_seen(settings: CompileSettings) -> None:
    path = fetch(RECIPE, settings, lambda: b"code").path
    for bit in range(8 * len(b"code")):
        content = bytearray(b"code")
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        assert read(path.parent, RECIPE) == "its content is not what its manifest says"
    path.write_bytes(b"code")
    assert isinstance(read(path.parent, RECIPE), Binary)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("which", ["binary", "entry", "folder"])
def test_what_belongs_to_another_user_is_not_loaded(settings: CompileSettings, which: str) -> None:
    path = filled(settings)
    os.chown({"binary": path, "entry": path.parent, "folder": settings.home()}[which], 12345, -1)
    assert find(RECIPE, settings) is None
    again = fetch(RECIPE, settings, lambda: CONTENT)
    assert again.content == CONTENT
    assert (again.path is None) == (which == "folder")


def test_a_foreign_owner_is_told_from_our_own(settings: CompileSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(settings)
    assert isinstance(read(path.parent, RECIPE), Binary)
    someone = path.stat().st_uid + 1 if path.stat().st_uid else None
    if someone is None:
        pytest.skip("what root owns is trusted by everybody")
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    assert "belongs to user" in str(read(path.parent, RECIPE))
    assert "belongs to user" in str(folder_fault(settings.home()))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_neither_read_nor_written(settings: CompileSettings, mode: int) -> None:
    filled(settings)
    settings.home().chmod(mode)
    assert find(RECIPE, settings) is None
    made = fetch(RECIPE, settings, lambda: CONTENT)
    assert (made.content, made.path, made.fresh) == (CONTENT, None, True)


def test_a_folder_that_cannot_be_made_leaves_the_bytes_and_no_file_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = fetch(RECIPE, CompileSettings(folder=tmp_path / "file" / "cache"), lambda: CONTENT)
    assert (made.content, made.path) == (CONTENT, None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_not_even_a_temporary_folder_can_be_written_the_bytes_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert fetch(RECIPE, CompileSettings(folder=tmp_path / "file" / "cache"), lambda: CONTENT).content == CONTENT


def test_a_write_that_fails_leaves_the_bytes(settings: CompileSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_entry, "_write", full)
    made = fetch(RECIPE, settings, lambda: CONTENT)
    assert (made.content, made.path) == (CONTENT, None)
    assert not [p for p in settings.home().iterdir() if p.is_dir()]


def test_a_prefilled_folder_is_read_and_not_written(tmp_path: Path, settings: CompileSettings) -> None:
    image = tmp_path / "image"
    filled(CompileSettings(folder=image))
    (image / f".{RECIPE.entry}.lock").unlink()
    image.chmod(0o555)
    before = sorted(image.rglob("*"))
    found = fetch(RECIPE, replace(settings, prefilled=(image,), compile=False), None)
    assert found.content == CONTENT
    assert sorted(image.rglob("*")) == before


def test_without_a_home_folder_code_is_still_compiled_for_this_process(
    homeless: CompileSettings, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(RECIPE, homeless) is None
    assert fetch(RECIPE, homeless, lambda: CONTENT).content == CONTENT
    assert f"for this process only: user {os.getuid()} has no home folder, and HOME names none" in caplog.text


def test_without_a_home_folder_the_others_are_looked_in(tmp_path: Path, homeless: CompileSettings) -> None:
    filled(CompileSettings(folder=tmp_path))
    assert fetch(RECIPE, replace(homeless, prefilled=(tmp_path,)), never).content == CONTENT


def test_without_a_home_folder_and_a_compiler_the_reason_names_both(tmp_path: Path, homeless: CompileSettings) -> None:
    with pytest.raises(KernelUnavailable, match=r"no compiler and no binary of it is in any folder \(user \d+ has no"):
        fetch(RECIPE, homeless, None)
    with pytest.raises(KernelUnavailable, match=f"no binary of it is in {tmp_path};"):
        fetch(RECIPE, replace(homeless, prefilled=(tmp_path,)), None)


def test_without_a_compiler_any_compilers_binary_of_the_same_source_will_do(settings: CompileSettings) -> None:
    filled(settings)
    assert fetch(replace(RECIPE, compiler=""), settings, None).content == CONTENT
    with pytest.raises(KernelUnavailable, match="no compiler"):
        fetch(replace(RECIPE, compiler="", source="f" * 64), settings, None)


def test_forbidden_compiling_is_a_reason_and_a_kept_binary_still_loads(settings: CompileSettings) -> None:
    forbidden = replace(settings, compile=False)
    with pytest.raises(KernelUnavailable, match=r"product for Linux-x86_64: compiling is switched off"):
        fetch(RECIPE, forbidden, never)
    filled(settings)
    assert fetch(RECIPE, forbidden, never).content == CONTENT


def test_a_build_that_fails_leaves_nothing_behind(settings: CompileSettings) -> None:
    def fail() -> bytes:
        raise KernelUnavailable("syntax error")

    with pytest.raises(KernelUnavailable, match="syntax error"):
        fetch(RECIPE, settings, fail)
    assert not [p for p in settings.home().iterdir() if p.is_dir()]
    assert fetch(RECIPE, settings, lambda: CONTENT).content == CONTENT


def test_a_good_entry_of_a_quicker_process_is_kept(settings: CompileSettings) -> None:
    path = filled(settings)
    inode = path.stat().st_ino
    publish(settings.home(), RECIPE, CONTENT)
    assert path.stat().st_ino == inode


def test_the_manifest_says_what_the_binary_was_made_from(settings: CompileSettings) -> None:
    path = filled(settings)
    manifest = json.loads((path.parent / cache_entry.MANIFEST).read_text())
    assert manifest["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert manifest["recipe"]["compiler"] == "compiler 1"
