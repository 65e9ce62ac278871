"""From text to nodes: traps, bounds, and one verdict from both YAML readers."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_samples import SMALL, changed, codes, read_text

from kerneltable.table.node import Node, walk
from kerneltable.table.nodes import DEEPEST, MOST_EVENTS, loaders, read_nodes
from kerneltable.table.report import MOST_FINDINGS, Report
from kerneltable.table.source import LARGEST_FILE, from_text

pytestmark = pytest.mark.skipif(len(loaders()) < 2, reason="PyYAML without libyaml")


def nodes_of(text: str, loader: str) -> tuple[Node | None, list[str]]:
    report = Report()
    source = from_text("t", text, report)
    node = None if source.text is None else read_nodes(source.text, "t", report, loader=loader)
    return (None if report.failed else node), codes(tuple(report.findings))


def flat(node: Node) -> list[object]:
    return [
        (path, type(n.value) if isinstance(n.value, dict | tuple) else n.value, n.mark, n.length)
        for path, n in walk(node)
    ]


PIECES = [
    "a", "b: ", "? ", ": ", "- ", "[", "]", "{", "}", ",", "\n", "\n  ", "\n    ", "'", '"', "#", " #", "|", "> ",
    "|-\n", "&x ", "*x", "!", "!!str ", "%", "@", "---\n", "...\n", "\\", "\\u0041", "\\ud800", "\\Uffffffff", "true",
    "1", "8.10", "no", "~", "''", "a:b", "::", "c?d ", "e?", "é", "key: v", "\n- ", "<<: ", "|#", ">-",
    "\r\n", " ", "\t", "\x85",
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join), st.booleans())
def test_both_readers_give_the_same_verdict_and_the_same_values(text, nested):
    text = f"a:\n  {text}" if nested else text
    with_c, _ = nodes_of(text, "c")
    with_python, _ = nodes_of(text, "python")
    assert (with_c is None) == (with_python is None)
    if with_c is not None and with_python is not None:
        assert flat(with_c) == flat(with_python)


def test_a_question_mark_inside_brackets_is_refused_by_both_readers():
    for text in ("a: {b: c?}", "a: [b?c, d]", "a: {b?c: d}"):
        assert nodes_of(text, "c")[0] is None
        assert nodes_of(text, "python")[0] is None
    for text in ("a: b?c", "a: {b: 'c?'}", "a?: b"):
        assert nodes_of(text, "c")[0] is not None
        assert nodes_of(text, "python")[0] is not None


def test_a_comment_glued_to_a_block_sign_is_refused_by_both_readers():
    assert nodes_of("a: |#", "c")[0] is None
    assert nodes_of("a: |#", "python")[0] is None
    assert nodes_of("a: | #\n  b", "c")[0] is not None
    assert nodes_of("a: | #\n  b", "python")[0] is not None


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize("cut", range(0, len(SMALL), 97))
def test_a_truncated_table_never_loads(tmp_path, loader, cut):
    table, findings = read_text(tmp_path, SMALL[:cut], loader=loader)
    assert table is None
    assert findings


def test_no_truncation_of_a_table_is_accepted_silently(tmp_path):
    for cut in range(0, len(SMALL.rstrip()), 17):
        table, findings = read_text(tmp_path, SMALL[:cut], loader="c")
        assert findings
        assert table is None or set(codes(findings)) == {"KT316"}  # cut between two routes


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "{a: " * 60_000, "- " * 100_000, "? " * 100_000, "a: *x\n" * 40_000, '"' * 200_000, "%A\n" * 80_000,
     "a: [" + "~," * 100_000, "".join(f"k{i}: v\n" for i in range(20_000)), "a: b\n" * 50_000, "\x01" * 200_000,
     "table: 1\n" + "".join(f"routs{i}: 1\n" for i in range(9_000)), "a: " + "9" * 200_000, "a: " + "1:" * 100_000],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_an_attack_is_refused_in_bounded_time(tmp_path, loader, text):
    start = time.process_time()
    table, findings = read_text(tmp_path, text, loader=loader)
    taken = time.process_time() - start
    assert table is None
    assert 0 < len(findings) <= MOST_FINDINGS + 1
    assert taken < 5  # under a second on an idle machine; a quadratic reading takes minutes


@pytest.mark.parametrize(
    "text", ["a: [" + "x," * 100_000, "[" * 200_000, "a: b\n" * 50_000], ids=["list", "deep", "keys"]
)
def test_an_attack_is_refused_in_bounded_memory(tmp_path, text):
    tracemalloc.start()
    read_text(tmp_path, text, loader="c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.mark.parametrize("loader", loaders())
def test_nesting_is_taken_to_the_bound_and_not_beyond(loader):
    inside = "a: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert nodes_of(inside, loader)[0] is not None
    assert nodes_of(inside.replace("[]", "[[]]"), loader) == (None, ["KT107"])


@pytest.mark.parametrize("loader", loaders())
def test_the_number_of_values_is_taken_to_the_bound_and_not_beyond(loader):
    around = 8  # stream, document, mapping, key, list: start and end
    values = MOST_EVENTS - around - 1
    assert nodes_of("a: [" + "x," * values + "]", loader)[0] is not None
    assert nodes_of("a: [" + "x," * (values + 4) + "]", loader) == (None, ["KT123"])


def test_a_table_of_two_hundred_kernels_is_well_inside_the_bounds(tmp_path):
    row = SMALL[SMALL.index("  fast:\n") : SMALL.index("  reference:\n    summary")]
    rows = "".join(row.replace("fast:", f"fast_{place}:", 1) for place in range(200))
    text = changed(("  reference:\n    summary", rows + "  reference:\n    summary"))
    assert len(text) < LARGEST_FILE
    table, findings = read_text(tmp_path, text)
    assert table is not None
    assert set(codes(findings)) == {"KT315"}


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize(
    ("written", "value"),
    [("128", 128), ("-5", -5), ("0", 0), ("999999999999999", 999999999999999), ("true", True), ("false", False),
     ("sm90", "sm90"), ("n", "n"), ("y", "y"), ("128x128", "128x128"), ("1e", "1e"), ("0o9", "0o9"), ("'8.10'", "8.10"),
     ('"no"', "no"), ('""', ""), ("a:b", "a:b"), ("é", "é"), ("nan", "nan"), ("1.2.3", "1.2.3"), ("'<<'", "<<"),
     ("|\n  two\n  lines\n", "two\nlines\n")],
)  # fmt: skip
def test_a_value_is_read_as_every_yaml_tool_reads_it(loader, written, value):
    node, _ = nodes_of(f"a: {written}", loader)
    assert node is not None
    inner = node.at("a")
    assert inner is not None
    assert inner.value == value
    assert type(inner.value) is type(value)


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize("escape", ["\\Uffffffff", "\\U00110000", "\\ud800", "\\q", "\\xzz", "\\0"])
def test_an_escape_that_names_no_usable_character_is_refused(loader, escape):
    assert nodes_of(f'a: "{escape}"', loader) == (None, ["KT105"])


@pytest.mark.parametrize("loader", loaders())
@pytest.mark.parametrize("text", ["a: &x b\n*x : c\n", "[a, *x]: b", "? *x\n: b\n", "&x a: b", "!!str a: b"])
def test_an_anchor_alias_or_tag_on_a_key_is_refused(loader, text):
    node, found = nodes_of(text, loader)
    assert node is None
    assert set(found) & {"KT108", "KT110", "KT113"}


@pytest.mark.parametrize("loader", loaders())
def test_a_node_knows_its_place(loader):
    node, _ = nodes_of("# x\na:\n  - bc: 12\n", loader)
    assert node is not None
    inner = node.at("a", 0, "bc")
    assert inner is not None
    assert (inner.mark.line, inner.mark.column, inner.length, inner.written) == (3, 9, 2, "12")
    parent = node.at("a", 0)
    assert parent is not None
    assert str(parent.keys["bc"]) == "t:3:5"
    assert node.at("a", 1) is None
    assert node.at("a", "bc", "x") is None
    assert node.at("b", "c") is None
    assert node.text() is None
    assert node.plain() == {"a": [{"bc": 12}]}


def test_all_findings_of_a_file_come_at_once_in_order(tmp_path):
    text = changed(("features: [neon]", "features: [neon, NO]"), ("k: {multiple_of: 128", "k: {multipleof: 128"),
                   ('date: "2026-11-21"', "date: 2026-11-21"), ("cuda: [fast,", "cuda: [fats,"))  # fmt: skip
    _, findings = read_text(tmp_path, text)
    assert codes(findings) == ["KT114", "KT201", "KT118", "KT301"]
    assert [f.mark.line for f in findings] == sorted(f.mark.line for f in findings)
    assert findings[2].line_text.strip() == "verified: [{device: h200, date: 2026-11-21}]"


def test_two_equal_keys_are_refused_with_both_lines(tmp_path):
    _, findings = read_text(tmp_path, changed(("    kind: native\n", "    kind: native\n    kind: native\n")))
    assert findings[0].message == "the key 'kind' is set twice: on line 34 and on line 35"
    assert str(findings[0].mark).endswith("table.yaml:35:5")
    assert findings[0].path == "kernels.fast.kind"


def test_more_than_two_hundred_findings_are_counted_and_errors_are_kept(tmp_path):
    nulls = ", ".join(["~"] * 300)
    _, findings = read_text(tmp_path, changed(("features: [neon]", f"features: [{nulls}]")))
    assert len(findings) == MOST_FINDINGS + 1
    assert findings[-1].code == "KT125"
    assert findings[-1].severity == "note"
    assert "101 more" in findings[-1].message
