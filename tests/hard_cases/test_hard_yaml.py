"""Group Y: bad YAML. Every case ends in findings with a place, or in the table that was meant; docs/hard-cases.md."""

from __future__ import annotations

import pytest
from hard_questions import SMALL, Within, ask, changed, findings_of

ANY = "features: [mma_bf16]"
NUMBER = "multiple_of: 16"
CAPABILITY = '{min: "12.0", max: "12.9"}'


def refused(folder, text: str | bytes, *wanted: str) -> None:
    table, codes = ask(folder, text)
    assert table is None
    assert set(codes) == set(wanted), codes


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "null\n", "~\n", "---\n", "--- # x\n...\n"])
def test_y01_nothing_is_refused_as_table_and_as_override_and_braces_alone_change_nothing(tmp_path, text):
    refused(tmp_path, text, "KT120")
    table, codes = ask(tmp_path, None, text)
    assert (table, codes) == (None, ["KT120"])
    table, codes = ask(tmp_path, None, "{}\n")
    assert table is not None
    assert codes == ["KT405"]


@pytest.mark.parametrize("text", ["- table\n", "[table, 1]\n", "table\n", "42\n", '"table: 1"\n'])
def test_y02_a_top_level_that_is_no_mapping_is_refused_at_line_1(tmp_path, text):
    refused(tmp_path, text, "KT124")
    assert findings_of(tmp_path, text)[0].mark.line == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("table: 1\n", 'table: 1\n"table": 1\n'),
        ("      neon: {features: [neon]}\n", "      neon: {features: [neon]}\n" * 2),
        ("multiple_of: 16}", "multiple_of: 16, 'multiple_of': 16}"),
        ("    kind: native\n", "    kind: native\n    ? kind\n    : native\n"),
        ("  reference:\n", "  fast: {}\n  reference:\n"),
    ],
)
def test_y03_a_duplicate_key_at_any_depth_is_refused_with_both_lines(tmp_path, old, new):
    text = changed(old, new)
    refused(tmp_path, text, "KT104")
    (finding,) = findings_of(tmp_path, text)
    assert finding.message.count("on line") == 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (changed("  cpu:\n    arch", "  cpu:\n    <<: {a: b}\n    arch"), "KT109"),
        (changed("sm80: {", "sm80: &a {"), "KT108"),
        (changed("sm80: {", "sm80: &a {").replace("{like: sm90, removes", "{<<: *a, removes"), "KT108"),
        ("a: &a {" + ", ".join(f"k{i}: x" for i in range(9)) + "}\n" + "b: {<<: [" + "*a, " * 60 + "*a]}\n", "KT108"),
    ],
)
def test_y04_merge_keys_anchors_and_aliases_are_refused(tmp_path, text, code):
    with Within(0.5):
        table, codes = ask(tmp_path, text)
    assert table is None
    assert code in codes


@pytest.mark.parametrize("wide", [8, 10, 12])
def test_y05_a_billion_laughs_are_refused_in_no_time(tmp_path, wide):
    lines = ["a: &a [lol, lol]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(wide)]
    with Within(0.5):
        table, codes = ask(tmp_path, "\n".join(lines))
    assert table is None
    assert "KT108" in codes


@pytest.mark.parametrize("depth", [64, 500, 20_000, 130_000])
@pytest.mark.parametrize("sign", ["[", "{a: ", "- "])
def test_y06_deep_nesting_is_refused_without_recursion(tmp_path, depth, sign):
    with Within(5):
        table, codes = ask(tmp_path, f"table: 1\nx: {sign * depth}" if sign != "- " else sign * depth)
    assert table is None
    assert set(codes) <= {"KT107", "KT102", "KT101"}


@pytest.mark.parametrize("written", ["8.10", "9.0", "12.0", "9", "80"])
def test_y07_a_capability_without_quotes_is_refused_and_the_hint_says_quote_it(tmp_path, written):
    text = changed(CAPABILITY, f'{{min: {written}, max: "12.9"}}')
    findings = findings_of(tmp_path, text)
    assert [f.code for f in findings] in (["KT115"], ["KT203"])
    assert "quote" in findings[0].help + findings[0].message or f'"{written}' in findings[0].help
    refused(tmp_path, changed(CAPABILITY, '{min: "12.0\\n", max: "12.9"}'), "KT205")


@pytest.mark.parametrize("written", ["12:1", "1:30", "010", "1_0", "0b11", "1e3", "0o10", "0x10", "+16", "16.0"])
def test_y08_numbers_that_readers_disagree_on_are_refused(tmp_path, written):
    refused(tmp_path, changed(NUMBER, f"multiple_of: {written}"), "KT115")


@pytest.mark.parametrize("written", ["no", "NO", "on", "off", "Yes", "TRUE"])
def test_y09_words_that_yaml_1_1_reads_as_truth_values_are_refused_with_that_hint(tmp_path, written):
    text = changed(ANY, f"features: [mma_bf16, {written}]")
    refused(tmp_path, text, "KT114")
    (finding,) = findings_of(tmp_path, text)
    assert "YAML 1.1 boolean" in finding.message or "TRUE" in finding.message
    assert "KT114" in ask(tmp_path, changed("  cpu:\n    arch", f"  {written}:\n    arch"))[1]


@pytest.mark.parametrize("written", [".nan", ".inf", "-.inf", ".NaN", "1.0e+999", "-1.0e+999"])
def test_y10_what_is_no_finite_number_is_refused(tmp_path, written):
    for old in (NUMBER, "min: 128", "shared_memory_kib: 163"):
        table, codes = ask(tmp_path, changed(old, f"{old.split(':')[0]}: {written}"))
        assert table is None
        assert set(codes) <= {"KT115", "KT117", "KT119"}


@pytest.mark.parametrize("digits", [16, 5_000, 100_000])
def test_y11_a_number_of_many_digits_is_refused(tmp_path, digits):
    for sign in ("", "-"):
        table, codes = ask(tmp_path, changed(NUMBER, f"multiple_of: {sign}{'9' * digits}"))
        assert table is None
        assert len(codes) == 1


@pytest.mark.parametrize("key", ["80", "~", "2026-04-17", "true", "9.0", "? [a]\n   ", "null"])
def test_y12_a_key_that_is_no_text_is_refused(tmp_path, key):
    table, codes = ask(tmp_path, changed("  cpu:\n    arch", f"  {key}: {{}}\n  cpu:\n    arch"))
    assert table is None
    assert {"KT113", "KT114"} & set(codes)


@pytest.mark.parametrize(
    "written",
    [
        "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!foo x", "!!set {a}", "!!omap [a: b]",
        "!!binary aGk=", "!!str x", "!<tag:x> y", "!!float 1",
    ],
)  # fmt: skip
def test_y13_tags_are_refused(tmp_path, written):
    table, codes = ask(tmp_path, changed("summary: bounded code", f"summary: {written}"))
    assert table is None
    assert "KT110" in codes


@pytest.mark.parametrize("written", ["2026-11-21", "2026-11-21 12:00:00", "2026-11-21T12:00:00Z"])
def test_y13_timestamps_are_refused(tmp_path, written):
    refused(tmp_path, changed("summary: bounded code", f"summary: {written}"), "KT118")


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "&a [*a]\n", "a: &a {b: *a}\n"])
def test_y14_a_value_inside_itself_is_refused(tmp_path, text):
    assert ask(tmp_path, text)[0] is None


def test_y15_one_document_of_a_known_yaml_version_is_taken_and_others_are_refused(tmp_path):
    refused(tmp_path, f"{SMALL}---\n{SMALL}", "KT111")
    refused(tmp_path, f"%YAML 3.0\n---\n{SMALL}", "KT112")
    refused(tmp_path, f"%TAG ! tag:x,2000:\n---\n{SMALL}", "KT112")
    for version in ("1.1", "1.2"):
        plain, _ = ask(tmp_path, SMALL)
        table, codes = ask(tmp_path, f"%YAML {version}\n---\n{SMALL}")
        assert codes == []
        assert table is not None
        assert plain is not None
        assert table.routes.keys() == plain.routes.keys()
    refused(tmp_path, "%YAML 1.2\n---\n" + changed(ANY, "features: [no]"), "KT114")  # the directive changes no meaning


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (SMALL.encode().replace(b"bounded code", b"a\xc2\x85b"), "KT105"),
        (SMALL.encode().replace(b"kind: native", b"kind:\xc2\xa0native"), "KT105"),
        (SMALL.encode().replace(b"    kind: native", b"\tkind: native"), "KT106"),
        (SMALL.encode().replace(b"bounded code", b"a\x00b"), "KT105"),
        (SMALL.encode().replace(b"bounded code", b"a\xed\xa0\x80b"), "KT105"),
        (SMALL.encode().replace(b"bounded code", b'"\\ud800"'), "KT105"),
        (SMALL.encode().replace(b"bounded code", b"a\xff"), "KT103"),
        (SMALL.encode().replace(b"bounded code", b"caf\xe9"), "KT103"),
        (SMALL.encode("utf-16"), "KT103"),
        (SMALL.encode("utf-16-le"), "KT103"),
        (SMALL.encode("utf-32"), "KT103"),
    ],
)
def test_y16_other_encodings_and_hidden_characters_are_refused_with_their_line(tmp_path, data, code):
    refused(tmp_path, data, code)


def test_y16_a_byte_order_mark_and_crlf_are_taken(tmp_path):
    assert ask(tmp_path, b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())[1] == []


@pytest.mark.parametrize(
    ("old", "new", "code", "nearest"),
    [
        ("  fast:\n", "  f\u0430st:\n", "KT205", "names look like"),
        ("layout: checkpoint", "l\u0430yout: checkpoint", "KT201", "layout"),
        ("cuda: [fast,", 'cuda: ["fast ",', "KT205", ""),
        ("cuda: [fast,", "cuda: [fats,", "KT301", "fast"),
        ("cuda: [fast,", "cuda: [f\u200bast,", "KT105", ""),
    ],
)
def test_y17_a_name_that_only_looks_right_is_refused(tmp_path, old, new, code, nearest):
    findings = findings_of(tmp_path, changed(old, new))
    assert code in {finding.code for finding in findings}
    assert any(nearest in finding.help for finding in findings)


def test_y18_no_truncation_is_taken_without_a_word(tmp_path):
    """Every 7th byte of the small table; fuzz/corpus.py cuts the shipped table at every byte."""
    whole, _ = ask(tmp_path, SMALL)
    assert whole is not None
    for end in range(0, len(SMALL.rstrip()), 7):
        table, codes = ask(tmp_path, SMALL[:end])
        assert codes
        assert table is None or set(codes) == {"KT316"}  # cut between two routes, and said so


BROKEN = (
    "'unended", '"unended', "[a, b", "{a: b", "a: b: c", "a:\n - b\n c", "- a\nb", "a\nb: c", "]", "}", ",", "a: }",
    "[a]]", "{a, b: [}", "key: |x\n  t", "key: >10\n t", "&", "*", "!", "&a &b c: d", "a: *missing", "%YAML",
    "%YAML 1.1\n%YAML 1.1\n", "%FOO\n", "@a: b", "`a: b", "a: @b", "a: `b", "a: %b", "- - -\n -", "? [\n", ": :\n:",
    "a: 'b'c", 'a: "b"c', '"\\q": a', '"\\x1": a', "--- a\n--- b", "a: b\n...\nc: d", "a: |\n\n  b\n c",
    "a:\n  b: c\n d: e", "[a b: c\n: d]", "{[a]: b, c", "a: b #c\n #d\n e: f", "a: [b,, c]", "{,}", "[,]", "!<> a: b",
    "!a!b c: d", "!!  x", "a: &\n", "a: >\n\tb", "a:\n\tb: c", "a: - b", "- a: b\n  - c", "? a\n? b\n: c: d", "a: ?",
    "---\n---\n", "...", 'a: "b\n---\nc"', "a: 'b\n...\nc'",
)  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_y20_text_that_is_no_yaml_ends_in_findings(tmp_path, text):
    for full in (text, f"{SMALL}\n{text}", f"table: 1\nx:\n  {text}"):
        table, codes = ask(tmp_path, full)
        assert table is None or full.startswith(SMALL)
        assert codes or table is not None
