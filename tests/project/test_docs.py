"""The pages of docs/: what they tell people to type and to write exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kerneltable.cli import COMMANDS, main
from kerneltable.table import check_table, load_table

DOCS = Path(__file__).parents[2] / "docs"
TYPED = sorted(
    {
        (path.name, line.strip().removeprefix("run: ").partition(" >")[0].partition(" ||")[0])
        for path in (DOCS / "ci.md", DOCS / "deployments.md", DOCS / "github-workflow.yml")
        for line in re.findall(r"(?m)(?:^|; |`)\s*(kerneltable [^`\n]+)", path.read_text())
    }
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", (DOCS / page).read_text())


@pytest.mark.parametrize(("page", "typed"), TYPED)
def test_a_command_of_the_docs_exists_with_its_options(
    page: str, typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(typed)
    assert words[1] in COMMANDS
    assert main([words[1], "--help"]) == 0
    help_text = capsys.readouterr().out
    for option in (word for word in words[2:] if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text), option


def test_the_docs_were_read() -> None:
    assert len(TYPED) > 10


def test_the_overrides_of_the_docs_are_good() -> None:
    texts = [block for block in blocks("deployments.md", "yaml") if "override: 1" in block]
    assert texts
    for text in texts:
        table, findings = check_table(None, [("docs.yaml", text)], plugins=False)
        assert table is not None, findings
        assert not [finding for finding in findings if finding.mark.file == "docs.yaml"]


def test_the_example_override_is_that_of_readme_and_passes_the_gate_of_the_workflow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = DOCS / "examples" / "h200.yaml"
    assert "--fail-on-warn" in (DOCS / "github-workflow.yml").read_text()
    assert main(["check", "-f", str(example), "--fail-on-warn"]) == 0, capsys.readouterr().out
    shown = "\n".join(example.read_text().splitlines()[1:])
    assert f"# docs/examples/h200.yaml\n{shown}\n```" in (DOCS.parent / "README.md").read_text()
    capsys.readouterr()
    main(["diff", "-f", str(example)])
    assert "LOST" not in capsys.readouterr().out


def test_the_docs_name_every_shipped_kernel_that_promises_batch_invariance() -> None:
    (said,) = re.findall(r"Of the shipped rows only(.*?)promise", (DOCS / "deployments.md").read_text(), flags=re.S)
    kernels = load_table(plugins=False).kernels.values()
    promising = {kernel.id for kernel in kernels if kernel.numerics.batch_invariant and kernel.kind != "reference"}
    assert set(re.findall(r"`(\w+)`", said)) - set(load_table(plugins=False).schemes) == promising


def test_the_erratum_of_the_docs_is_good(tmp_path: Path) -> None:
    (row,) = [block for block in blocks("deployments.md", "yaml") if block.startswith("errata:")]
    text = load_table(plugins=False).layers[0].text
    merged = text.replace("\nerrata:\n", f"\n{row}") if "\nerrata:\n" in text else f"{text}\n{row}"
    file = tmp_path / "table.yaml"
    file.write_text(merged)
    table, findings = check_table(file)
    assert table is not None, findings


def test_the_workflow_and_the_hooks_are_yaml_with_what_github_and_pre_commit_need() -> None:
    workflow = yaml.safe_load((DOCS / "github-workflow.yml").read_text())
    assert workflow["jobs"]["check"]["runs-on"]
    assert all("uses" in step or "run" in step for step in workflow["jobs"]["check"]["steps"])
    (hooks,) = [block for block in blocks("ci.md", "yaml") if "repos:" in block]
    for repo in yaml.safe_load(hooks)["repos"]:
        assert all({"id"} <= set(hook) for hook in repo["hooks"])
        assert repo["repo"] == "local" or repo["rev"]
