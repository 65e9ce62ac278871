"""Every good file loads, every bad one gives exactly the code in its name, with both YAML readers."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from table_samples import TABLES, TODAY

import kerneltable.table
from kerneltable.table import check_table
from kerneltable.table.load import read
from kerneltable.table.nodes import loaders
from kerneltable.table.render import render
from kerneltable.table.rules import rules

BAD = sorted((TABLES / "bad").iterdir())
BAD_OVERRIDES = sorted((TABLES / "bad-overrides").iterdir())
UNSEEN = {
    "KT102", "KT121", "KT122", "KT125",             # files that a repository cannot hold: test_table_source.py
    "KT321", "KT322", "KT323", "KT324",             # against constructors: test_table_checks.py
    "KT412",                                        # over a table with conditions: test_table_ordering.py
}  # fmt: skip


def read_bad(path: Path, loader: str):
    if path.parent.name == "bad":
        return read(path, (), today=TODAY, loader=loader)
    return read(TABLES / "good" / "small.yaml", [(path.name, path.read_text())], today=TODAY, loader=loader)


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize("path", [*BAD, *BAD_OVERRIDES], ids=lambda path: path.stem)
def test_a_bad_file_gives_exactly_the_code_in_its_name(path, loader):
    table, findings = read_bad(path, loader)
    code = path.stem.split("-")[0]
    assert {finding.code for finding in findings} == {code}
    assert (table is None) == (rules()[code].severity == "error")
    for finding in findings:
        assert finding.severity == rules()[code].severity
        assert finding.mark.file == (str(path) if path.parent.name == "bad" else path.name)
        assert finding.mark.line >= 1
        assert finding.mark.column >= 1


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_message_is_ours_and_printable(path):
    for finding in read_bad(path, loaders()[0])[1]:
        text = "\n".join(render(finding))
        assert all(line.isprintable() for line in text.split("\n"))
        for foreign in ("is not valid under", "is not of type", "did not match", "while parsing", "<unicode string>"):
            assert foreign not in text


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize("path", sorted((TABLES / "good").iterdir()), ids=lambda path: path.stem)
def test_a_good_table_loads_without_a_word(path, loader):
    table, findings = read(path, (), today=TODAY, loader=loader)
    assert findings == ()
    assert table is not None


@pytest.mark.parametrize("loader", loaders())
def test_the_shipped_table_loads_without_a_word(loader):
    table, findings = read(None, (), loader=loader)  # the present day: its rows were verified up to it
    assert findings == ()
    assert table is not None
    assert table.layers[0].name == "dispatch.yaml"


def test_a_rule_stands_for_every_code_used_and_no_other():
    package = Path(kerneltable.table.__file__).parents[1]
    schemas = Path(__file__).parents[2] / "schema"
    sources = [path for path in package.rglob("*.py") if not path.name.startswith("rule")] + [*schemas.glob("*.json")]
    used = {code for path in sources for code in re.findall(r"\bKT[0-9]{3}\b", path.read_text())}
    assert used == set(rules())


def test_every_rule_of_reading_has_a_fixture_or_a_test_of_its_own():
    """KT5xx speak of decisions, not of files: the tests of lint and diff show them."""
    shown = {path.stem.split("-")[0] for path in [*BAD, *BAD_OVERRIDES]}
    assert shown | UNSEEN == {code for code in rules() if code < "KT5"}
    assert not shown & UNSEEN


def test_every_rule_explains_itself():
    for code, rule in rules().items():
        assert rule.code == code
        assert rule.title
        assert rule.text.endswith(".")
        assert rule.fix.endswith(".")
        assert rule.severity in ("error", "warning", "note")


def test_check_and_load_agree(tmp_path):
    path = TABLES / "bad" / "KT301-unknown-kernel.yaml"
    table, findings = check_table(path)
    assert table is None
    with pytest.raises(kerneltable.errors.ConfigError) as caught:
        kerneltable.table.load_table(path)
    assert caught.value.findings == findings
    assert "error[KT301]" in str(caught.value)
    assert kerneltable.table.load_table(TABLES / "good" / "small.yaml").version == 1


def test_reading_the_shipped_table_takes_well_under_a_second():
    """The figure is 60 ms (measured apart); this only catches a reading that became quadratic. The processor's time: a
    busy machine adds none."""
    start = time.process_time()
    read(None, ())
    assert time.process_time() - start < 1.0
