"""Group M: configuration that means harm; docs/hard-cases.md says which cases other files hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hard_questions import SMALL, SMALL_FILE, Within, ask, changed

import kerneltable
from kerneltable.kernels import registry
from kerneltable.model import Problem
from kerneltable.select import device, select
from kerneltable.table import load_table
from kerneltable.table.load import MOST_OVERRIDES, read

ENGINE = Path(kerneltable.__file__).parent
NAMES = (
    "os.system", "kerneltable.kernels.reference", "../../evil", "/tmp/evil.so", "http://127.0.0.1:9/x", "file:///etc/passwd",
    "$(touch x)", "`id`", "; rm -rf x", "__import__", "a b", "A", "x" * 200, "{0.__class__}", "%s%n", "reference\n",
)  # fmt: skip
IMPORTERS = {  # file -> where the name that it imports comes from
    "__init__.py": "its own list of public names",
    "cli/__init__.py": "a key of COMMANDS",
    "kernels/registry.py": "a file of kernels/, or an entry point of an installed package",
    "ops/installed.py": "a constant of the adapter that asks",
}


@pytest.mark.parametrize("name", NAMES)
def test_m01_a_path_a_url_or_shell_text_is_no_kernel_id(tmp_path, name):
    """That nothing is opened, imported or run meanwhile is held by test_table_source.py with an audit hook."""
    quoted = '"' + name.replace("\n", "\\n") + '"'
    with pytest.raises(kerneltable.errors.KernelTableError, match="not registered"):
        registry.load(name)
    for text in (changed("cuda: [fast,", f"cuda: [{quoted},"), changed("  fast:\n", f"  {quoted}:\n")):
        table, codes = ask(tmp_path, text)
        assert table is None
        assert set(codes) <= {"KT205", "KT207", "KT301", "KT105"}
    for override in (
        f"disable: [{{kernel: {quoted}, reason: x}}]",
        f"routes: {{fp8_w8a8: {{cuda: {{require: {quoted}}}}}}}",
    ):
        assert ask(tmp_path, None, f"override: 1\n{override}\n")[0] is None


@cache
def calls_in(path: Path) -> tuple[ast.Call, ...]:
    return tuple(node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def calls(path: Path, names: set[str]) -> list[ast.Call]:
    found = calls_in(path)
    return [call for call in found if getattr(call.func, "id", getattr(call.func, "attr", "")) in names]


def test_m02_no_text_of_a_file_becomes_an_import_or_code():
    imports = {
        path.relative_to(ENGINE).as_posix()
        for path in ENGINE.rglob("*.py")
        if calls(path, {"import_module", "__import__", "spec_from_file_location"})
    }
    assert imports == set(IMPORTERS)
    for path in ENGINE.rglob("*.py"):
        builtins = [call for call in calls(path, {"eval", "exec", "__import__"}) if isinstance(call.func, ast.Name)]
        assert not builtins, path
        assert not [call for call in calls(path, {"import_module"}) if room(path) in ("table", "select")], path


def room(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "file:///etc/passwd", "../schema/dispatch.schema.json"])
def test_m03_a_reference_in_a_file_of_a_user_is_never_followed(tmp_path, address):
    """`$schema` is for editors and only has to be text; `$ref` is an unknown key."""
    assert ask(tmp_path, f"$schema: {address}\n{SMALL}")[1] in ([], ["KT205"])
    assert ask(tmp_path, f"$ref: {address}\n{SMALL}") == (None, ["KT201"])
    assert ask(tmp_path, None, f"override: 1\n$ref: {address}\n") == (None, ["KT201"])


@pytest.mark.parametrize("text", ["a" * 4000 + "!", "1." * 2000 + "x", "1x" * 2000, ">=1," * 1000 + "!", "-" * 4000])
def test_m04_no_text_makes_a_pattern_run_for_long(tmp_path, text):
    places = (('torch: ">=2.10"', f'torch: "{text}"'), ('max: "12.9"', f'max: "{text}"'),
              ("summary: bounded code", f'summary: "{text}"'), ("  fast:\n", f'  "{text}":\n'))  # fmt: skip
    for old, new in places:
        with Within(1):
            ask(tmp_path, changed(old, new))


@pytest.mark.parametrize(
    "field", ["library: /tmp/evil.so", "path: ../../evil", "module: os", "source: x.cu", "env: {A: b}"]
)
def test_m08_a_row_cannot_name_a_file_or_a_module(tmp_path, field):
    assert ask(tmp_path, changed("    kind: native\n", f"    kind: native\n    {field}\n")) == (None, ["KT201"])
    row = f"override: 1\nkernels: {{fast: {{{field}, unsafe: true, reason: x}}}}\n"
    assert ask(tmp_path, None, row) == (None, ["KT201"])


@pytest.mark.parametrize("value", ["", "a:b", "../x", "/nowhere", "x" * 100_000])
def test_m09_the_environment_injects_nothing(tmp_path, value):
    """No variable of ours decides (test_t18); what a front end of ours prints about one is bounded."""
    program = (
        "import sys; from kerneltable.table import load_table; t = load_table(); print(t.digest);"
        "from kerneltable.cli import main; sys.exit(main(['rule', 'KT101']))"
    )
    home = {"PYTHONPATH": str(ENGINE.parent)}
    names = ("KERNELTABLE_OVERRIDE", "KERNELTABLE_TABLE", "KERNELTABLE_\x1b[31m" + "X" * 1000)
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**home, **dict.fromkeys(names, value)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[0] == load_table().digest
    assert len(told.stderr) < 1000
    assert "\x1b" not in told.stderr


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "{0.__class__.__mro__}", "%s %n %(x)s", "a\nb\rc", "\u202ereversed", "x" * 5000]
)
def test_m12_foreign_text_is_quoted_shortened_and_never_formatted(text):
    table = load_table(SMALL_FILE)
    asks = (
        lambda: device(text, table),
        lambda: select(table, device("h200", table), Problem(text, n=16, k=128)),
        lambda: select(table, device("h200", table), Problem("fp8_w8a8", n=16, k=128, input=text)),
        lambda: registry.load(text),
    )
    for ask_it in asks:
        with pytest.raises(kerneltable.errors.KernelTableError) as caught:
            ask_it()
        words = str(caught.value)
        assert words.isprintable()
        assert len(words) < 1000
        assert "<class" not in words


@pytest.mark.parametrize("number", [2**31, 2**63, 10**12, 10**15, 10**18])
def test_m13_numbers_beyond_any_size_are_refused(tmp_path, number):
    for old, key in (
        ("multiple_of: 16", "multiple_of"),
        ("min: 128", "min"),
        ("shared_memory_kib: 163", "shared_memory_kib"),
    ):
        table, codes = ask(tmp_path, changed(old, f"{key}: {number}"))
        assert table is None
        assert set(codes) <= {"KT206", "KT119", "KT123", "KT312"}
    table = load_table(SMALL_FILE)
    with pytest.raises(kerneltable.ProblemError):
        select(table, device("h200", table), Problem("fp8_w8a8", n=number, k=128))


def test_m14_a_million_rows_and_ten_thousand_overrides_are_refused_at_once(tmp_path):
    with Within(2):
        table, codes = ask(tmp_path, SMALL + "".join(f"k{i}: {{}}\n" for i in range(1_000_000)))
    assert (table, codes) == (None, ["KT102"])
    override = "override: 1\nkernels: {fast: {accepts: {m: {max: %d}}}}\n"
    with Within(1):
        table, findings = read(SMALL_FILE, ((f"{i}.yaml", override % (10**6 - i)) for i in range(10_000)))
    assert table is None
    assert [finding.code for finding in findings] == ["KT123"]
    with Within(3):
        table, findings = read(SMALL_FILE, [(f"{i}.yaml", override % (10**6 - i)) for i in range(MOST_OVERRIDES)])
    assert table is not None
    assert findings == ()
