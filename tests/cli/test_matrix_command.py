"""`matrix` as text, JSON and a page that a browser opens without asking anybody for anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import Ask, override

from kerneltable.table import load_table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip
PROBE = """
const count = () => document.querySelectorAll("tbody tr").length;
const seen = {rows: count(), columns: document.querySelectorAll("tbody tr:first-child td").length};
const first = () => document.querySelector("tbody .chipname").textContent;
const [byChip] = document.querySelectorAll("thead .sort");
byChip.click(); seen.up = first(); byChip.click(); seen.down = first();
document.querySelector('[data-name="cuda"]').click(); seen.withoutCuda = count();
document.querySelector('[data-name="cuda"]').click();
byId("find").value = "mi300x"; byId("find").dispatchEvent(new Event("input")); seen.found = count();
byId("find").value = "zebra"; byId("find").dispatchEvent(new Event("input")); seen.empty = !byId("empty").hidden;
byId("find").value = ""; byId("find").dispatchEvent(new Event("input"));
const won = document.querySelector(".won"); won.onmouseenter(); seen.told = byId("told").textContent;
won.onmouseleave(); seen.gone = byId("told").hidden;
byId("theme").click(); seen.themes = [document.documentElement.className]; byId("theme").click();
seen.themes.push(document.documentElement.className);
seen.requests = performance.getEntriesByType("resource").length;
document.body.dataset.seen = JSON.stringify(seen);
"""


def test_the_text_names_every_device_and_every_scheme(ask: Ask) -> None:
    answer = ask("matrix")
    table = load_table()
    words = " ".join(answer.out.split())
    assert (answer.code, answer.err) == (0, "")
    for platform in table.platforms.values():
        assert all(name in words for name in platform.devices)
    assert all(f"{scheme} (" in answer.out for scheme in table.schemes)
    assert max(map(len, (line for line in answer.out.splitlines() if " <- " not in line))) <= 110


def test_the_json_explains_each_winner(ask: Ask) -> None:
    found = ask("matrix", "--devices", "a100,h200", "--scheme", "mxfp8", "--format", "json").json
    assert [row["devices"] for row in found["rows"]] == [["a100"], ["h200"]]
    for row in found["rows"]:
        assert len(row["cells"]) == len(found["columns"])
        for won in (won for cell in row["cells"] for won in cell):
            chosen = [c["kernel"] for c in won["candidates"] if c["verdict"] == "chosen"]
            assert chosen == [won["kernel"]]
            assert won["kind"] == found["kernels"][won["kernel"]]["kind"]


def test_problems_without_a_kernel_are_shown_and_exit_1(ask: Ask, tmp_path: Path) -> None:
    text = "override: 1\nroutes: {mxfp8: {cuda: {order: {replace: [triton_mxfp8_w8a16]}}}}\n"
    argv = ("matrix", "--devices", "a100", "--scheme", "mxfp8", "-f", override(tmp_path, text))
    answer = ask(*argv)
    assert (answer.code, "no kernel <- everything else" in answer.out) == (1, True)
    assert ask(*argv[:-2]).code == 0


@pytest.mark.parametrize(("argv", "words"), [
    (("--devices", "h20o0"), "unknown device 'h20o0'"),
    (("--scheme", "mxfp9"), "unknown scheme 'mxfp9'"),
    (("--facts", "missing.json"), "missing.json"),
])  # fmt: skip
def test_a_matrix_that_cannot_be_asked_is_exit_2(ask: Ask, argv: tuple[str, ...], words: str) -> None:
    answer = ask("matrix", *argv)
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err


def test_a_folder_of_facts_is_a_fleet(ask: Ask, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    assert "no facts file" in ask("matrix", "--facts", fleet).err
    for name, chip in (("one", "sm80"), ("two", "sm90")):
        (fleet / f"{name}.json").write_text(json.dumps({"platform": "cuda", "architecture": chip, "name": name}))
    found = ask("matrix", "--facts", fleet, "--scheme", "mxfp8", "--format", "json").json
    assert [(row["devices"], row["architecture"]) for row in found["rows"]] == [(["one"], "sm80"), (["two"], "sm90")]


def page(ask: Ask, tmp_path: Path, *argv: str) -> str:
    file = tmp_path / "matrix.html"
    assert ask("matrix", "--format", "html", "-o", file, *argv).out == ""
    return file.read_text()


def test_the_page_asks_nobody_for_anything(ask: Ask, tmp_path: Path) -> None:
    text = page(ask, tmp_path)
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest", text.split('id="data"')[0])
    assert not re.findall(r"innerHTML|\bfetch\(|import\(|XMLHttpRequest", text)


def test_text_of_an_override_cannot_become_a_part_of_the_page(ask: Ask, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    file = override(tmp_path, f'override: 1\nkernels: {{triton_w8a16: {{why: "{evil}"}}}}\n')
    text = page(ask, tmp_path, "--devices", "a100", "-f", file)
    assert evil not in text
    assert "\\u003c/script>\\u003cimg" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_sorts_filters_and_explains(ask: Ask, tmp_path: Path) -> None:
    text = page(ask, tmp_path)
    file = tmp_path / "probed.html"
    file.write_text(text.replace("header();\nbody();\n", f"header();\nbody();\n{PROBE}"))
    ran = subprocess.run(
        [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.search(r'data-seen="([^"]*)"', ran.stdout)
    assert said is not None, ran.stdout[-2000:]
    seen = json.loads(said[1].replace("&quot;", '"').replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    data = ask("matrix", "--format", "json").json
    rows = data["rows"]
    assert (seen["rows"], seen["columns"]) == (len(rows), len(data["columns"]))
    assert seen["up"] != seen["down"]
    assert seen["withoutCuda"] == sum(row["platform"] != "cuda" for row in rows)
    assert seen["found"] == 1
    assert seen["empty"] is True
    assert "wanted" in seen["told"]
    assert "found" in seen["told"]
    assert seen["gone"] is True
    assert set(seen["themes"]) == {"", "dark"}
    assert seen["requests"] == 0


@pytest.mark.parametrize("command", ["lock", "matrix", "diff"])
@pytest.mark.parametrize(("option", "text"), [("--devices", ""), ("--devices", ","), ("--facts", "")])
def test_an_option_for_devices_that_names_none_is_refused(ask: Ask, command: str, option: str, text: str) -> None:
    """Not taken for all devices: a variable of a script was empty."""
    answer = ask(command, option, text)
    assert (answer.code, answer.out) == (2, "")
    assert f"{option}: wanted " in answer.err
    assert f"found {text!r}" in answer.err


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_a_machine_on_a_platform_that_the_table_lacks_is_a_row_that_nothing_serves(
    ask: Ask, tmp_path: Path, form: str
) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text('{"platform": "tpu", "architecture": "v5", "name": "pod"}')
    answer = ask("matrix", "--facts", facts, "--devices", "h200", "--scheme", "mxfp8", "--format", form)
    assert answer.code == 1
    if form == "json":
        assert [row["platform"] for row in answer.json["rows"]] == ["cuda", "tpu"]
        assert [won["kernel"] for won in answer.json["rows"][1]["cells"][0]] == [None]
    if form == "text":
        assert answer.out.endswith("  tpu (pod)\n      no kernel\n")
