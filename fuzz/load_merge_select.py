"""Fuzz target: load a table, merge an override, select. Whatever the bytes are, only errors of kerneltable may come.

With atheris (pip install atheris):  python fuzz/load_merge_select.py [FOLDER] -max_total_time=60 -timeout=5
Without it:                          python fuzz/load_merge_select.py --random 20000 [--seed 1]
The second form mutates the small tables of tests/data without coverage feedback; it needs nothing installed.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "engine"))
TABLES = ROOT / "tests" / "data" / "tables"
FOLDER = TemporaryDirectory(prefix="kerneltable-fuzz-")
FILE = Path(FOLDER.name) / "table.yaml"
DEVICES = ("sm90", "cuda:13.0", "cpu:neon", "cuda:8.10", "gfx94", "\x1b[31m")
PIECES = (
    b"<<: *x", b"&x ", b"*x", b"- ", b": ", b"? ", b"[", b"]", b"{", b"}", b"|\n", b"!!python/name:os.system ", b"~",
    b"no", b"8.10", b"1e999", b".nan", b"\xff", b"\xed\xa0\x80", b"\t", b"\x00", b"\r", b"\xe2\x80\xa8", b"9" * 30,
    b"-1", b"'", b'"', b"order: {remove: [reference]}", b"require: fast", b"allow_empty: true", b"multiple_of: 0",
    b"unsafe: true, reason: x", b"min: 128", b"max: 64", b'"9.0"', b"sm90", b"fast", b"reference", b"cuda", b"fp8_w8a8",
)  # fmt: skip


def once(data: bytes) -> None:
    """One input: its first byte says whether the rest is a table, an override, or (cut in two) both."""
    from kerneltable.errors import ConfigError, KernelTableError
    from kerneltable.model import Problem
    from kerneltable.select import device, select
    from kerneltable.table import load_table

    form, rest = data[0] % 3 if data else 0, data[1:]
    table, override = (rest, b"") if form == 0 else (b"", rest) if form == 1 else rest.split(b"\xfe", 1) + [b""] * 1
    try:
        path = TABLES / "good" / "small.yaml"
        if table:
            FILE.write_bytes(table)
            path = FILE
        text = override.decode("utf-8", "surrogateescape")
        text = text.encode("utf-8", "replace").decode("utf-8")
        loaded = load_table(path, [("fuzz.yaml", text)] if override else [])
    except ConfigError as error:
        if not error.findings:
            raise AssertionError("refused without a finding") from error
        return
    for name in (*loaded.platforms, *DEVICES):
        for scheme in (*loaded.schemes, "nowhere"):
            try:
                answer = select(loaded, device(name, loaded), Problem(scheme, n=4096, k=len(rest), m=form or None))
            except KernelTableError:
                continue
            if answer.kernel is None and not (answer.notes or answer.candidates):
                raise AssertionError("no kernel and no reason")


def seeds() -> list[bytes]:
    """The good tables and overrides and all bad ones that are small, each with its form in front."""
    found = []
    for folder, form in (("good", b"\0"), ("bad", b"\0"), ("good-overrides", b"\1"), ("bad-overrides", b"\1")):
        files = sorted((TABLES / folder).glob("*.yaml"))
        found += [form + data for file in files if len(data := file.read_bytes()) < 8192]
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: a flipped bit, a piece put in, a stretch taken out or doubled."""
    text = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(1, max(2, len(text)))
        end = at + chance.randint(1, 40)
        what = chance.randrange(4)
        if what == 0 and at < len(text):
            text[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            text[at:at] = chance.choice(PIECES)
        elif what == 2:
            del text[at:end]
        else:
            text[at:at] = text[at:end]
    return bytes(text)


def run_random(count: int, seed: int) -> int:
    """Mutate seeds and try each; returns how many inputs were tried. Whatever escapes is raised with its input."""
    chance = random.Random(seed)
    start = seeds()
    for _ in range(count):
        data = mutated(chance.choice(start), chance)
        try:
            once(data)
        except Exception as error:
            error.add_note(f"input: {data!r}")
            raise
    FILE.unlink(missing_ok=True)
    return count


def main() -> None:
    """With --random N: without atheris; else the fuzzer takes over and does not return."""
    if "--random" in sys.argv:
        numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
        print(f"{run_random(numbers[0], (*numbers[1:], 1)[0])} inputs, no foreign exception")
        return
    import atheris

    with atheris.instrument_imports(include=["kerneltable"]):
        import kerneltable.select
        import kerneltable.table  # noqa: F401
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
