"""The schema files themselves, and the words for what they do not allow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource
from table_samples import TABLES, changed, codes, laid_over, read_text

from kerneltable.formats import ACCUMULATORS, FORMATS
from kerneltable.table.locate import shipped
from kerneltable.table.nodes import read_nodes
from kerneltable.table.report import Report
from kerneltable.table.schema import check_schema, load_schema
from kerneltable.table.source import from_text
from kerneltable.table.wording import CHIP_KEYS

SCHEMAS = {name: json.loads(shipped("schema", f"{name}.schema.json").read_text()) for name in ("dispatch", "override")}
KEYWORDS = {
    "$schema", "$defs", "$ref", "$comment", "title", "description", "examples", "type", "properties", "required",
    "additionalProperties", "propertyNames", "items", "contains", "enum", "const", "pattern", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "uniqueItems", "if", "then",
    "else", "not",
}  # fmt: skip
CONDITIONS = {"if", "then", "else", "not", "contains", "propertyNames"}


def subschemas(schema: Any, path: str = "#", within: bool = False) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every schema in a schema; the flag tells those that only state a condition."""
    if not isinstance(schema, dict):
        return
    yield path, schema, within
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from subschemas(inner, f"{path}/{key}/{name}", within)
    for key in ("items", "additionalProperties", *sorted(CONDITIONS)):
        if key in schema:
            yield from subschemas(schema[key], f"{path}/{key}", within or key in CONDITIONS)


ALL = [(name, path, schema, within) for name, root in SCHEMAS.items() for path, schema, within in subschemas(root)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_json_schema_2020_12(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_keyword_is_one_that_draft_7_knows_too():
    """A misspelt keyword would be ignored silently, and `requierd` would require nothing."""
    unknown = {(name, path, key) for name, path, schema, _ in ALL for key in schema if key not in KEYWORDS}
    assert unknown == set()


def test_every_key_has_a_description_and_an_example():
    missing = []
    for name, path, schema, within in ALL:
        for key, inner in {} if within else schema.get("properties", {}).items():
            target = SCHEMAS[name]
            if inner.get("$ref", "").startswith("dispatch.schema.json"):
                target = SCHEMAS["dispatch"]
            pointed = target["$defs"][inner["$ref"].split("/")[-1]] if "$ref" in inner else {}
            if not inner.get("description") or not (inner.get("examples") or pointed.get("examples")):
                missing.append((name, path, key))
    assert missing == []


def test_every_object_is_closed():
    loose = [
        (name, path) for name, path, schema, within in ALL
        if not within and schema.get("type") == "object" and "additionalProperties" not in schema
    ]  # fmt: skip
    assert loose == []


def test_every_pattern_is_anchored_ascii_and_linear():
    for _, path, schema, _ in ALL:
        pattern = schema.get("pattern", "^$")
        assert pattern.startswith("^"), path
        assert pattern.endswith("$"), path
        assert not re.search(r"\\[dws]", pattern), path
        for text in ("a" * 500, "1" * 500 + "!", "1." * 250 + "!", ">=1," * 125 + "!", "a-_" * 160 + " ", "1x" * 250):
            start = time.process_time()  # a busy machine adds none
            re.search(pattern, text)
            assert time.process_time() - start < 0.1, (path, text[:8])


def test_every_example_fits_its_own_schema():
    registry = Registry().with_resource("dispatch.schema.json", Resource.from_contents(SCHEMAS["dispatch"]))
    checked = 0
    for name, path, schema, within in ALL:
        inner = Draft202012Validator({**schema, "$defs": SCHEMAS[name]["$defs"]}, registry=registry)
        for example in [] if within else schema.get("examples", []):
            if path != "#" and "..." not in json.dumps(example):
                assert [error.message for error in inner.iter_errors(example)] == [], (name, path, example)
                checked += 1
    assert checked > 100


def test_every_format_of_the_schema_is_one_that_formats_knows():
    definitions = SCHEMAS["dispatch"]["$defs"]
    for name in ("weight_format", "input_format", "scale_format", "dtype"):
        assert set(definitions[name]["enum"]) - {"none"} <= set(FORMATS)
    assert set(definitions["numerics"]["properties"]["accumulator"]["examples"]) <= set(ACCUMULATORS)


def test_the_keys_of_an_override_row_are_those_of_a_row():
    row = set(SCHEMAS["dispatch"]["$defs"]["kernel"]["properties"])
    assert set(SCHEMAS["override"]["$defs"]["kernel"]["properties"]) == row | {"unsafe", "reason"}


@pytest.mark.parametrize("path", sorted((TABLES / "good").iterdir()), ids=lambda path: path.stem)
def test_a_standard_validator_agrees_that_a_good_table_is_good(path):
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load(path.read_text("utf-8-sig"))
    assert list(Draft202012Validator(SCHEMAS["dispatch"]).iter_errors(document)) == []


def test_the_modelines_point_at_the_schemas():
    root = Path(__file__).parents[2]
    first = (root / "dispatch.yaml").read_text().split("\n", 1)[0]
    assert (root / first.split("$schema=")[1]).samefile(root / "schema" / "dispatch.schema.json")


# --- Words


def messages(tmp_path, *replacements: tuple[str, str]) -> list[str]:
    return [f.message + " | " + f.help for f in read_text(tmp_path, changed(*replacements))[1]]


def test_an_unknown_key_names_the_nearest_one_at_the_key(tmp_path):
    _, findings = read_text(tmp_path, changed(("n: {multiple_of: 16}", "n: {multipleof: 16}")))
    assert findings[0].message == "kernel 'fast': accepts.n: unknown key 'multipleof'"
    assert findings[0].help == "did you mean 'multiple_of'?"
    assert (findings[0].mark.line, findings[0].mark.column, findings[0].length) == (31, 71, 10)
    assert findings[0].path == "kernels.fast.accepts.n.multipleof"


def test_a_number_for_text_shows_what_was_written(tmp_path):
    (said,) = messages(tmp_path, ('min: "9.0", max', "min: 9, max"))
    assert said == "kernel 'fast': runs_on.cuda.capability.min must be text; found the number 9 | quote it: \"9\""
    (said,) = messages(tmp_path, ('min: "9.0", max', "min: 8.10, max"))
    assert said.startswith('8.10 without quotes is read as the number 8.1 | quote it, "8.10"')


@pytest.mark.parametrize(("old", "new", "said"), [
    ("kind: native", "kind: nativ", "kernel 'fast': kind must be one of native, weight_only, emulation, reference; "
     "found the text 'nativ' | did you mean 'native'?"),
    ("input: [bf16], output", "input: bf16, output", "kernel 'fast': accepts.input must be a list; "
     "found the text 'bf16' | write a list: [bf16]"),
    ("n: {multiple_of: 16}", 'n: {multiple_of: "16"}', "kernel 'fast': accepts.n.multiple_of must be a whole number; "
     "found the text '16' | take the quotes off"),
    ("n: {multiple_of: 16}", "n: {multiple_of: two}", "kernel 'fast': accepts.n.multiple_of must be a whole number; "
     "found the text 'two' | "),
    ("n: {multiple_of: 16}", "n: {multiple_of: true}", "kernel 'fast': accepts.n.multiple_of must be a whole number; "
     "found the truth value true | "),
    ("n: {multiple_of: 16}", "n: {multiple_of: 0}", "kernel 'fast': accepts.n.multiple_of is out of bounds: "
     "at least 1 is taken; found the number 0 | "),
    ("input: [bf16], output", "input: [], output", "kernel 'fast': accepts.input is out of bounds: "
     "must have 1 or more items; found 0 | "),
    ("input: [bf16], output", "input: [bf16, bf16], output", "kernel 'fast': accepts.input holds the text 'bf16' twice"
     " | keep one of them"),
    ("    kind: native\n", "", "kernel 'fast': the key 'kind' is missing | for example `kind: \"native\"`"),
    ('max: "12.9"}, f', 'max: "12"}, f', "kernel 'fast': runs_on.cuda.capability.max has the wrong form: the text '12'"
     ' | write it like "9.0" or "12.1"'),
    ("{schemes: [fp8_w8a8], input: [bf16], output: [bf16], n: {multiple_of: 16}, k: {multiple_of: 128, min: 128}}",
     "[]", "kernel 'fast': accepts must be a mapping; found a list | "),
    ("cuda: [fast, reference]", "cuda: {order: [fast]}", "route 'fp8_w8a8/cuda' must be a list; found a mapping | "),
    ("cuda: [fast, reference]", "cuda: [{kernel: fast, wen: {}}, reference]",
     "route 'fp8_w8a8/cuda': [0]: unknown key 'wen' | did you mean 'when'?"),
    ("table: 1", "table: 2", "table must be 1; found the number 2 | this program reads that version alone"),
])  # fmt: skip
def test_a_message_names_subject_wanted_found_and_next_step(tmp_path, old, new, said):
    assert messages(tmp_path, (old, new)) == [said]


def test_a_homoglyph_is_named(tmp_path):
    (said,) = messages(tmp_path, ("    kind: native", "    k\u0456nd: native\n    kind: native"))
    assert "U+0456, which only looks like ASCII" in said
    assert "k\\u0456nd" in said
    said = messages(
        tmp_path, ("      cpu: {portable: true}", "      cpu: {portable: true}\n      \u0441uda: {portable: true}")
    )
    assert "'\\u0441uda' is not a name; it holds U+0441" in said[0]


def test_several_unknown_and_missing_keys_are_each_a_finding(tmp_path):
    text = changed(("    kind: native\n", "    kin: native\n    stat: x\n"), ("    status: unverified\n", ""))
    _, findings = read_text(tmp_path, text)
    assert codes(findings) == ["KT202", "KT202", "KT201", "KT201"]


@pytest.mark.parametrize(("said", "help"), [
    ('capability: {min: "9.0", max: "9.9"}', "{cuda: {capability: ...}}"),
    ("capability: {}", "{cuda: {capability: ...}}"),
    ("architectures: [sm90]", "{PLATFORM: {architectures: ...}}"),
    ("portable: true", "{PLATFORM: {portable: ...}}"),
])  # fmt: skip
def test_a_platform_left_out_under_runs_on_is_named_as_the_mistake(tmp_path, said, help):
    key = said.partition(":")[0]
    _, over = laid_over(f"kernels: {{fast: {{runs_on: {{{said}}}}}}}\n")
    _, inside = read_text(
        tmp_path, changed(("      cpu: {portable: true}", f"      cpu: {{portable: true}}\n      {said}"))
    )
    for finding in (*over, *inside):
        assert (finding.code, finding.length) == ("KT303", len(key))
        assert finding.message.endswith(f": runs_on: unknown platform '{key}'")
        assert finding.help == f"the platform is left out: write runs_on: {help}"
    assert (len(over), len(inside)) == (1, 1)


def test_what_runs_on_says_of_a_platform_is_what_the_schema_knows():
    rows = load_schema("dispatch")["properties"]["kernels"]["additionalProperties"]
    assert set(rows["properties"]["runs_on"]["additionalProperties"]["properties"]) == set(CHIP_KEYS)


def test_a_refused_value_is_not_spoken_of_twice(tmp_path):
    for old, new, code in (
        ("    status: unverified", "    status: no", "KT114"),
        ("    status: verified", "    status: no", "KT114"),  # `verified` stands beside it
        ("kind: native", "kind: 5", "KT203"),
        ("granularity: [channel, tensor]", "granularity: [no]", "KT114"),
        (
            "    accepts: {schemes: [fp8_w8a8], input: [bf16], output",
            "    accepts: {schemes: [~], input: [bf16], output",
            "KT116",
        ),
    ):
        assert codes(read_text(tmp_path, changed((old, new)))[1]) == [code]


def test_a_reference_in_a_users_file_is_only_an_unknown_key():
    _, findings = laid_over('$ref: "http://127.0.0.1:9/x"\n')
    assert codes(findings) == ["KT201"]


def test_references_between_our_own_schemas_are_all_resolved():
    assert "$ref" not in json.dumps(load_schema("override"))
    assert "$ref" not in json.dumps(load_schema("dispatch"))


def test_a_flood_of_schema_errors_stops():
    report = Report()
    source = from_text("t", "table: 1\n" + "".join(f"key{i}: 1\n" for i in range(3000)), report)
    root = read_nodes(source.text or "", "t", report)
    assert root is not None
    check_schema(root, load_schema("dispatch"), report)
    assert len(report.findings) == 400
    check_schema(root, load_schema("dispatch"), report)
    assert len(report.findings) == 400
