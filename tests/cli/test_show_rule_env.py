"""`show`, `rule` and `env`."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Ask, override

from kerneltable.cli.stated import below, stated
from kerneltable.cli.values import values_of
from kerneltable.table import load_table


def test_show_prints_path_value_and_place(ask: Ask) -> None:
    answer = ask("show", "routes.mxfp8.cuda")
    table = load_table()
    first = table.routes["mxfp8", "cuda"].steps[0]
    lines = answer.out.splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert lines[0] == f"# dispatch.yaml  sha256 {table.layers[0].sha256}"
    assert lines[1].split() == ["routes.mxfp8.cuda.0:", first.kernel, str(first.mark)]


def test_show_covers_every_section_and_every_predicate(ask: Ask) -> None:
    values = ask("show", "--format", "json").json["values"]
    table = load_table()
    paths = [value["path"] for value in values]
    assert len(set(paths)) == len(paths)
    assert {path.partition(".")[0] for path in paths} >= {"platforms", "schemes", "kernels", "routes"}
    for kernel in table.kernels.values():
        for predicate in kernel.accepts:
            path = f"kernels.{kernel.id}.{predicate.key}"
            assert {"path": path, "where": str(predicate.mark)}.items() <= values[paths.index(path)].items()


def test_show_names_the_file_that_set_a_value(ask: Ask, tmp_path: Path) -> None:
    text = """override: 1
routes: {mxfp8: {cuda: {prefer: reference, order: {prepend: [{kernel: reference, when: {m: {max: 4}}}]}}}}
kernels: {triton_mxfp8_w8a16: {accepts: {m: {max: 64}, bias: [false]}}}
disable: [{kernel: torch_mxfp8_emulation, reason: slow, until: "2099-01-01", platform: cuda}]
"""
    file = override(tmp_path, text)
    answer = ask("show", "-f", file)
    assert answer.code == 0, answer.err
    for said in (
        "routes.mxfp8.cuda.prefer: reference",
        "kernels.triton_mxfp8_w8a16.accepts.m.max: 64",
        "disable.0.kernel: torch_mxfp8_emulation",
        "disable.0.until: 2099-01-01",
    ):
        (line,) = [line for line in answer.out.splitlines() if line.startswith(said)]
        assert f" {file}:" in line


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("table", "table: 1 "),
        ("plans", "plans.weight_copies: 1 "),
        ("kernels.hopper_fp8_block.verified", "kernels.hopper_fp8_block.verified.0.device: h200 "),
        ("schemes.fp8_block_w8a8.weight.any_block", "schemes.fp8_block_w8a8.weight.any_block: true "),
        ("platforms.cuda.architectures.sm121.like", "platforms.cuda.architectures.sm121.like: sm120 "),
        ("platforms.cuda.architectures.sm80.features.0", "platforms.cuda.architectures.sm80.features.0: "),
    ],
)
def test_show_lists_what_only_the_file_states(ask: Ask, path: str, said: str) -> None:
    answer = ask("show", path)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[1].startswith(said)
    if not path.endswith(".0"):
        assert f"\n{said}" in ask("show").out


def test_what_show_lists_with_origin_it_lists_without(tmp_path: Path) -> None:
    text = """override: 1
plans: {weight_copies: 2}
routes: {mxfp8: {cuda: {prefer: reference, plans: {deterministic: true}}}}
disable: [{kernel: torch_mxfp8_emulation, reason: slow, until: "2099-01-01", platform: cuda}]
"""
    table = load_table(overrides=[override(tmp_path, text)])
    values, written = values_of(table), stated(table)
    for path, *_ in written[::7]:
        assert path in [one[0][: len(path)] for one in below(values, written, ".".join(path))]
    listed = {one[0] for one in below(values, written, "")}
    assert {one[0] for one in values} < listed
    for path, *_ in written:  # itself, or the one value that its list or range is listed as
        up = [path[:end] for end in range(1, len(path) + 1)]
        beside = any(one[: len(path) - 1] == path[:-1] for one in listed)
        assert listed.intersection(up) or (path[-1].isdigit() and beside), path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("routs", "the table has no 'routs'; did you mean 'routes'?"),
        ("routes.mxfp9", "routes has no 'mxfp9'; did you mean 'mxfp8'?"),
        ("routes.mxfp8.cuda.0.x", "routes.mxfp8.cuda.0 has no 'x'; none are known"),
    ],
)
def test_show_refuses_a_path_that_is_not_there(ask: Ask, path: str, words: str) -> None:
    answer = ask("show", path)
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err


def test_rule_explains_a_code_in_any_case(ask: Ask) -> None:
    answer = ask("rule", "kt104")
    assert answer.code == 0
    assert answer.out.startswith("KT104 (error): ")
    for part in ("\nbad:\n", "\ngood:\n", "\nway out: "):
        assert part in answer.out
    keys = {"format", "code", "severity", "title", "text", "bad", "good", "fix"}
    assert set(ask("rule", "KT104", "--format", "json").json) == keys


def test_every_rule_can_be_shown(ask: Ask) -> None:
    for rule in ask("rule", "--format", "json").json["rules"]:
        assert ask("rule", rule["code"]).code == 0


def test_rule_lists_all_codes(ask: Ask) -> None:
    listed = ask("rule").out.splitlines()
    assert len(listed) == len(ask("rule", "--format", "json").json["rules"]) > 20
    assert any(line.startswith("KT104  ") for line in listed)


def test_an_unknown_rule_is_refused_with_the_nearest(ask: Ask) -> None:
    answer = ask("rule", "KT1O4")
    assert (answer.code, answer.out) == (2, "")
    assert "there is no rule 'KT1O4'; did you mean 'KT" in answer.err


def test_env_writes_facts_that_explain_reads(ask: Ask, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    written = ask("env", "--json")
    assert written.code == 0
    assert written.out == ask("env", "--format", "json").out
    facts = override(tmp_path, written.out, "facts.json")
    there = ask("explain", "mxfp8", "--facts", facts, "--n", "256", "--k", "256", "--format", "json")
    here = ask("explain", "mxfp8", "--n", "256", "--k", "256", "--format", "json")
    assert there.json["device"] == here.json["device"] == written.json["device"]
    assert there.json["chosen"] == here.json["chosen"]


def test_env_text_has_every_fact(ask: Ask) -> None:
    pytest.importorskip("torch")
    answer = ask("env")
    for name in ("kerneltable", "python", "platform", "architecture", "packages", "ops", "sm_count"):
        assert f"\n{name} " in f"\n{answer.out}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "facts.json:1:2: this is no JSON"),
        (b"\xff\xfe", "UTF-8 text was wanted"),
        (b" " * 1_100_000, "at most 1048576 bytes"),
        (b"[]", "a JSON object was wanted"),
        (b'{"platform": "cuda", "capability": 9.0}', "capability must be a text"),
    ],
)
def test_facts_that_cannot_be_read_are_exit_2(ask: Ask, tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "facts.json"
    file.write_bytes(data)
    answer = ask("explain", "mxfp8", "--facts", file, "--n", "256", "--k", "256")
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("7777", "device 7777: wanted a GPU that torch sees; found "),
        ("-1", "argument --index: a whole number from 0 to 2147483647 was wanted; found '-1'"),
        ("0.5", "argument --index: a whole number from 0 to 2147483647 was wanted; found '0.5'"),
    ],
)
def test_env_of_a_gpu_that_is_not_there_is_no_answer(ask: Ask, index: str, words: str) -> None:
    answer = ask("env", "--index", index)
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err
