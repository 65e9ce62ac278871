"""Rows, chips and errata that an override changes: what is free, what is refused, and where a message points."""

from __future__ import annotations

import pytest
from table_samples import TABLES, codes, laid_over

from kerneltable.select.lint import prove
from kerneltable.table.load import read

SMALL = str(TABLES / "good" / "small.yaml")


@pytest.mark.parametrize("status", ["unverified", "deprecated"])
def test_a_row_that_takes_its_status_back_is_verified_nowhere(status: str) -> None:
    table, findings = laid_over(f"kernels: {{reference: {{status: {status}}}}}\n")
    assert findings == ()
    assert table is not None
    assert (table.kernels["reference"].status, table.kernels["reference"].verified) == (status, ())
    assert ("kernels", "reference", "verified") not in table.marks


def test_a_row_that_keeps_its_status_keeps_its_devices_and_new_ones_need_that_status() -> None:
    table, _ = laid_over("kernels: {reference: {status: verified}}\n")
    assert table is not None
    assert [v.device for v in table.kernels["reference"].verified] == ["h200"]
    where = 'verified: [{device: h200, date: "2026-11-20"}]'
    table, findings = laid_over(f"kernels: {{reference: {{status: unverified, {where}}}}}\n")
    assert (table, codes(findings), findings[0].mark.file) == (None, ["KT209"], "a.yaml")


def test_a_file_of_the_other_kind_gets_one_message_that_says_which_option_takes_it() -> None:
    table, (finding,) = read(TABLES / "bad-overrides" / "KT301-anchor.yaml", ())
    assert table is None
    assert (finding.code, finding.mark.line, "-f" in finding.help) == ("KT126", 1, True)
    _, (finding,) = read(SMALL, [("a.yaml", "table: 1\nroutes: {fp8_w8a8: {cuda: [fast]}}\n")])
    assert (finding.code, "--table" in finding.help, finding.mark.file) == ("KT126", True, "a.yaml")
    _, findings = read(SMALL, [("a.yaml", "override: 1\ntable: 1\nroutes: {fp8_w8a8: {cuda: {prefer: fast}}}\n")])
    assert codes(findings) == ["KT201"]


@pytest.mark.parametrize(("text", "code", "place", "other"), [
    ('platforms: {cuda: {families: {sm12x: {min: "13.0"}}}}', "KT311", 44, (6, 33)),
    ("platforms: {cuda: {architectures: {sm90: {features: [wgmma]}}}}", "KT209", 43, None),
    ("platforms: {cuda: {architectures: {sm80: {like: sm90}}}}", "KT209", 49, (8, 14)),
    ("platforms: {cuda: {architectures: {sm90: {adds: [tma]}}}}", "KT310", 50, (10, 37)),
    ("kernels: {fast: {accepts: {k: {max: 64}}}}", "KT311", 37, None),
    ("kernels: {fast: {accepts: {k: {min: 129, max: 130}}}}", "KT312", 47, None),
    ("routes: {fp8_w8a8: {cuda: {order: {remove: [reference]}}}}", "KT317", 45, (52, 12)),
])  # fmt: skip
def test_what_an_override_brings_about_is_said_at_its_own_line(
    text: str, code: str, place: int, other: tuple[int, int] | None
) -> None:
    findings = [finding for finding in laid_over(f"{text}\n")[1] if finding.code == code]
    assert (findings[0].mark.file, findings[0].mark.line, findings[0].mark.column) == ("a.yaml", 2, place)
    if other is not None:
        assert f"({SMALL}:{other[0]}:{other[1]})" in findings[0].message


def test_of_two_overrides_the_later_one_is_named() -> None:
    lower = "kernels: {fast: {accepts: {m: {max: 64}}}}\n"
    _, (finding,) = laid_over(lower, "kernels: {fast: {accepts: {m: {min: 65}}}}\n")
    assert (finding.code, finding.mark.file) == ("KT311", "b.yaml")
    assert "nothing is from 65 to 64 (a.yaml:2:37)" in finding.message


def test_a_table_that_contradicts_itself_is_told_where_it_always_was() -> None:
    _, (finding,) = laid_over("kernels: {fast: {accepts: {m: {min: 65, max: 64}}}}\n")
    assert (finding.code, finding.mark.column, "(" in finding.message) == ("KT311", 46, False)


@pytest.mark.parametrize("order", ["{remove: [reference]}", "{replace: [fast]}"])
def test_problems_without_a_kernel_are_laid_to_the_line_that_took_it_out(order: str) -> None:
    table, _ = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {order}}}}}}}\n")
    assert table is not None
    (proof,) = [proof for proof in prove(table) if proof.code == "KT504"]
    assert (proof.mark.file, proof.mark.line) == ("a.yaml", 2)
    assert proof.message.startswith("'reference' is taken out here, and nothing else takes this")
    back = "routes: {fp8_w8a8: {cuda: {order: {append: [reference]}}}}\n"
    table, _ = laid_over(f"routes: {{fp8_w8a8: {{cuda: {{order: {order}}}}}}}\n", back)
    assert table is not None
    assert [proof for proof in prove(table) if proof.code == "KT504"] == []


def test_a_device_may_not_have_the_name_of_another_architecture() -> None:
    table, (finding,) = laid_over("platforms: {cuda: {devices: {sm90: sm80}}}\n")
    assert (table, finding.code, finding.mark.file, finding.mark.column) == (None, "KT332", "a.yaml", 30)
    assert (
        finding.message
        == f"platform 'cuda': 'sm90' is an architecture and a device of 'sm80'; the other one is at {SMALL}:9:7"
    )
    assert laid_over("platforms: {cuda: {devices: {sm90: sm90, h100: sm90}}}\n")[1] == ()
    _, (finding,) = laid_over('platforms: {cuda: {architectures: {h200: {like: sm90, capability: "9.1"}}}}\n')
    assert (finding.code, finding.mark.file) == ("KT332", "a.yaml")


def test_no_advice_leads_to_the_next_error() -> None:
    _, (finding,) = laid_over("routes: {fp8_w8a8: {cpu: {require: fast}}}\n")
    assert (finding.code, finding.help) == (
        "KT403",
        f"its row does not run on cpu ({SMALL}:29:7); the route has reference",
    )
    take_out = "routes: {fp8_w8a8: {cuda: {order: {remove: [fast]}, require: fast}}}\n"
    (finding,) = [finding for finding in laid_over(take_out)[1] if finding.code == "KT403"]
    assert finding.help == "add it: order: {prepend: [fast]}"
    platform = "platforms: {npu: {architectures: {a1: {features: []}}}}\n"
    _, (finding,) = laid_over(platform)
    assert (finding.code, finding.mark.file) == ("KT316", "a.yaml")
    assert finding.help == "no row runs there: give one `runs_on: {npu: ...}`, then add routes.fp8_w8a8.npu"
    wider = "kernels: {reference: {runs_on: {npu: {portable: true}}, unsafe: true, reason: plain torch}}\n"
    _, (finding,) = laid_over(platform + wider)
    assert finding.help == "add routes.fp8_w8a8.npu; rows that run there: reference"
    assert laid_over(platform + wider + "routes: {fp8_w8a8: {npu: {order: {append: [reference]}}}}\n")[1] == ()


@pytest.mark.parametrize(("change", "found"), [
    ("sm90: {target: sm_90a}, sm120: {target: sm_120f}", []),
    ("sm80: {target: sm_80}, sm90: {target: sm_90}, sm120: {target: sm_120}", []),
    ("sm120: {target: sm_120f}, sm129: {like: sm120}", []), ("sm120: {target: sm_120}, sm129: {like: sm120}", []),
    ("sm120: {target: sm_120a}, sm129: {like: sm120}", ["KT333"]), ("sm120: {target: sm_121f}", ["KT309"]),
    ("sm120: {target: sm_90a}", ["KT309"]),
    ("sm80: {target: sm_80}, sm90: {target: sm_80}, sm120: {target: sm_120}", ["KT309"]),
    ("sm129: {like: sm120, target: sm_999}", ["KT309"]), ("sm90: {target: sm_90a}", ["KT333"]),
])  # fmt: skip
def test_code_for_the_target_of_a_chip_runs_on_it(change: str, found: list[str]) -> None:
    assert codes(laid_over(f"platforms: {{cuda: {{architectures: {{{change}}}}}}}\n")[1]) == found


@pytest.mark.parametrize(("bounds", "found"), [
    ('{max: "12.5"}', []), ('{min: "12.1"}', []), ('{max: "13.0"}', ["KT404"]), ('{min: "9.0"}', ["KT404"]),
    ('{max: "13.0", unsafe: true, reason: one mask}', []), ('{max: "13.0", unsafe: true}', ["KT202"]),
    ('{max: "13.0", unsafe: false}', ["KT404"]),
])  # fmt: skip
def test_a_family_reaches_further_only_when_that_is_said_aloud(bounds: str, found: list[str]) -> None:
    table, findings = laid_over(f"platforms: {{cuda: {{families: {{sm12x: {bounds}}}}}}}\n")
    assert (codes(findings), table is None) == (found, bool(found))
    new = 'platforms: {cuda: {families: {sm13x: {min: "13.0", max: "13.9"}}}}\n'
    assert laid_over(new)[1] == ()


def test_a_feature_that_nothing_knows_is_a_note_with_the_nearest_name() -> None:
    chip = "platforms: {cuda: {architectures: {sm129: {like: sm120, adds: [%s]}}}}\n"
    table, (finding,) = laid_over(chip % "mma_pf8")
    assert table is not None
    assert (finding.code, finding.severity, finding.help) == ("KT334", "note", "did you mean 'mma_fp8'?")
    assert laid_over(chip % "wgmma")[1] == ()
    asked = "kernels: {fast: {runs_on: {cuda: {features: [mma_fp8, mma_pf8]}}}}\n"
    assert laid_over(chip % "mma_pf8" + asked)[1] == ()


def multiples(*numbers: int, size: str = "m") -> str:
    """An override that puts one step for the multiples of each number in front."""
    steps = ", ".join(f"{{kernel: reference, when: {{{size}: {{multiple_of: {number}}}}}}}" for number in numbers)
    return f"routes: {{fp8_w8a8: {{cuda: {{order: {{prepend: [{steps}]}}}}}}}}\n"


PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89)


@pytest.mark.parametrize("size", ["m", "n", "k"])
def test_multiples_that_make_too_many_sets_are_refused_at_the_one_that_is_too_many(size: str) -> None:
    table, (finding,) = laid_over(multiples(*PRIMES, size=size))
    assert (table, finding.code, finding.mark.file) == (None, "KT335", "a.yaml")
    others = {"m": 0, "n": 1, "k": 1}[size]  # the row of `fast` has one of its own for n and for k
    assert f"the {len(PRIMES) + others} different multiples of {size} make more than 256 sets" in finding.message
    assert "from 23 on" in finding.help or others


@pytest.mark.parametrize("numbers", [PRIMES[:8], tuple(2**i for i in range(31)), (16, 24, 48, 64, 96, 128, 160, 320)])
def test_multiples_that_people_write_are_taken(numbers: tuple[int, ...]) -> None:
    assert laid_over(multiples(*numbers))[1] == ()


def test_the_steps_of_several_layers_count_together() -> None:
    assert laid_over(multiples(*PRIMES[:5]))[1] == ()
    table, findings = laid_over(multiples(*PRIMES[:5]), multiples(*PRIMES[5:10]))
    (finding,) = [finding for finding in findings if finding.severity == "error"]
    assert (table, finding.code, finding.mark.file) == (None, "KT335", "b.yaml")


@pytest.mark.parametrize("text", [
    "kernels: {fast: {unsafe: true, reason: x}}", "kernels: {fast: {reason: x}}", "kernels: {fast: {needs: {}}}",
    "platforms: {cuda: {architectures: {sm90: {}}}}", "platforms: {cuda: {families: {sm12x: {}}}}",
    "platforms: {cuda: {families: {sm12x: {unsafe: true, reason: x}}}}", "platforms: {cuda: {devices: {}}}",
])  # fmt: skip
def test_a_change_without_content_is_a_warning(text: str) -> None:
    table, findings = laid_over(f"{text}\n")
    assert table is not None or codes(findings) == ["KT207"]
    assert codes(findings) in (["KT405"], ["KT207"])


@pytest.mark.parametrize(("day", "found"), [
    ("2026-11-20", []), ("2026-11-22", []), ("2026-11-23", ["KT336"]), ("2099-01-01", ["KT336"]),
])  # fmt: skip
def test_a_run_has_taken_place_by_tomorrow_at_the_latest(day: str, found: list[str]) -> None:
    text = f'kernels: {{fast: {{status: verified, verified: [{{device: h200, date: "{day}"}}]}}}}\n'
    table, findings = laid_over(text)
    assert table is not None
    assert codes(findings) == found
