"""What an editor shows while an override is typed, with the language server that most of them use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Ask
from jsonschema import Draft202012Validator
from language_server import LanguageServer

from kerneltable.table import load_table

SERVER = shutil.which("yaml-language-server")
needs_server = pytest.mark.skipif(
    SERVER is None or shutil.which("node") is None, reason="yaml-language-server is not installed (npm)"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    from kerneltable.cli.schema import schema_with_names

    folder = tmp_path_factory.mktemp("editor")
    schema = folder / "override.schema.json"
    schema.write_text(json.dumps(schema_with_names("override", load_table())))
    running = LanguageServer(str(SERVER), schema, folder)
    yield running
    running.close()


@needs_server
def test_an_editor_marks_what_is_wrong_where_it_stands(server: LanguageServer) -> None:
    text = "override: 1\ndisable:\n  - {kernel: triton_w8a16}\nrouts: {}\n"
    found = server.diagnostics("bad.yaml", text)
    assert {(d["range"]["start"]["line"], d["range"]["start"]["character"]) for d in found} == {(2, 4), (3, 0)}
    said = " ".join(d["message"] for d in found)
    assert "reason" in said
    assert "routs" in said


@needs_server
def test_an_editor_is_content_with_a_good_override(server: LanguageServer) -> None:
    text = 'override: 1\ndisable:\n  - {kernel: triton_w8a16, reason: slow, until: "2099-01-01"}\n'
    assert server.diagnostics("good.yaml", text) == []


@needs_server
def test_an_editor_offers_every_kernel_by_name(server: LanguageServer) -> None:
    offered = server.completions("typed.yaml", "override: 1\nroutes:\n  mxfp8:\n    cuda:\n      require: ")
    assert set(load_table().kernels) <= set(offered)


@needs_server
def test_an_editor_offers_the_keys_of_a_route(server: LanguageServer) -> None:
    offered = server.completions("keys.yaml", "override: 1\nroutes:\n  mxfp8:\n    cuda:\n      ")
    assert {"order", "require", "prefer"} <= set(offered)


@pytest.mark.parametrize("which", ["dispatch", "override"])
def test_a_schema_with_names_stands_alone_and_says_the_same(ask: Ask, which: str) -> None:
    answer = ask("schema", which)
    assert (answer.code, answer.err) == (0, "")
    schema = answer.json
    Draft202012Validator.check_schema(schema)
    assert "dispatch.schema.json#" not in answer.out
    good = {"override": 1, "disable": [{"kernel": "triton_w8a16", "reason": "slow"}]}
    bad = {"override": 1, "disable": [{"kernel": "../triton_w8a16", "reason": "slow"}]}
    if which == "override":
        assert Draft202012Validator(schema).is_valid(good)
        assert not Draft202012Validator(schema).is_valid(bad)
    else:
        assert not Draft202012Validator(schema).is_valid(good)


def test_a_schema_with_names_has_the_names_of_the_overrides_too(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("override: 1\nplatforms: {cuda: {architectures: {sm129: {like: sm120}}}}\n")
    file.chmod(0o600)
    names = ask("schema", "override", "-f", file).json["$defs"]["table_architecture_id"]["examples"]
    assert "sm129" in names
    assert "sm129" not in ask("schema", "override").json["$defs"]["table_architecture_id"]["examples"]
