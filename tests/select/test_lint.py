"""What `check` proves: each proof with the table that earns it and the twin that does not."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import product

import pytest
from handmade import at_least, at_most, deny, kernel, needs, one_of, route, runs_on, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneltable.model import Problem, RunsOn, Step, Terms
from kerneltable.select import device, refusals, select
from kerneltable.select.lint import prove
from kerneltable.select.lint_steps import prove_steps
from kerneltable.select.survey import survey_of
from kerneltable.table import load_table
from kerneltable.table.rules import rules


def found(made, *codes):
    """The proofs with these codes about the route fp8 on cuda, or about rows."""
    mine = [proof for proof in prove(made) if proof.path[0] == "kernels" or proof.path[1:3] == ("fp8", "cuda")]
    return [proof for proof in mine if proof.code in codes]


def on_cuda(*predicates, portable=False) -> list[RunsOn]:
    return [runs_on("cuda", *predicates, portable=portable)]


def with_route(*steps, **rows):
    return table(route("fp8", "cuda", *steps), rows={row.id: row for row in rows.values()})


def chosen(made, command: str):
    """What the `explain` command of a proof would answer; its options are those of the small tables."""
    words = shlex.split(command)
    asked = dict(zip(words[3::2], words[4::2], strict=False))
    block = asked.get("--weight-block")
    problem = Problem(
        words[2],
        n=int(asked["--n"]),
        k=int(asked["--k"]),
        m=int(asked["--m"]) if "--m" in asked else None,
        input=asked.get("--input", "bf16"),
        output=asked.get("--output", asked.get("--input", "bf16")),
        weight_block=tuple(int(side) for side in block.split("x")) if block else None,
        weight_granularity=asked.get("--weight-granularity"),
    )
    return select(made, device(asked["--device"], made), problem)


# --- Steps ----------------------------------------------------------------------------------------------------------


def test_a_step_whose_limits_contradict_each_other_is_found():
    narrow = Step("wide", (at_most("when.n.max", 0),), table().kernels["wide"].mark)
    (proof,) = found(with_route(narrow, "fast", "wide", "reference"), "KT501")
    assert "'wide' can never be chosen" in proof.message
    assert proof.path == ("routes", "fp8", "cuda", 0)
    absent = kernel(
        "absent", on=on_cuda(at_least("runs_on.capability.min", (8, 6)), at_most("runs_on.capability.max", (8, 8)))
    )
    assert len(found(with_route("absent", "reference", absent=absent), "KT501")) == 1


def test_a_step_that_accepts_one_problem_on_one_chip_is_no_contradiction():
    one = Step("wide", (at_most("when.n.max", 1), one_of("when.architectures", "sm121")), table().kernels["wide"].mark)
    assert found(with_route(one, "fast", "wide", "reference"), "KT501", "KT502") == []


def test_versions_that_no_package_can_have_are_a_contradiction():
    both = (needs("needs.packages", "torch", ">=3"), needs("needs.packages", "torch", "<2"))
    assert len(found(with_route("never", "reference", never=kernel("never", need=both)), "KT501")) == 1
    some = kernel("some", need=(needs("needs.packages", "torch", ">=2,<3"),))
    assert found(with_route("some", "reference", some=some), "KT501") == []


def test_a_hidden_step_is_found_with_the_step_that_hides_it():
    made = with_route("wide", "fast", "reference", wide=replace(table().kernels["wide"], accepts=()))
    (proof,) = found(made, "KT502")
    assert "'fast' is never the first choice: 'wide' (hand.yaml:50:5) takes all that it accepts" in proof.message
    assert proof.path == ("routes", "fp8", "cuda", 1)
    answer = chosen(made, proof.witness)
    assert answer.kernel == "wide"
    assert {c.kernel: c.verdict for c in answer.candidates}["fast"] == "later"


def test_two_steps_that_hide_a_third_one_together_are_both_named():
    low = kernel("low", at_most("accepts.n.max", 64), on=on_cuda(portable=True))
    high = kernel("high", at_least("accepts.n.min", 64), on=on_cuda(portable=True))
    (proof,) = found(with_route("low", "high", "wide", "reference", low=low, high=high), "KT502")
    assert "'low' (hand.yaml:50:5) and 'high' (hand.yaml:51:5)" in proof.message
    gap = replace(high, accepts=(at_least("accepts.n.min", 66),))
    assert found(with_route("low", "gap", "wide", "reference", low=low, gap=replace(gap, id="gap")), "KT502") == []


def test_a_step_that_wins_where_a_package_is_missing_is_not_hidden():
    extra = kernel("extra", on=on_cuda(portable=True), need=(needs("needs.packages", "flashinfer"),))
    assert found(with_route("extra", "wide", "reference", extra=extra), "KT502") == []
    both = (needs("needs.packages", "flashinfer", ">=0.2"),)
    older = kernel("older", on=on_cuda(portable=True), need=(needs("needs.packages", "flashinfer"),))
    newer = replace(extra, needs=both)
    assert found(with_route("extra", "older", "reference", extra=newer, older=older), "KT502") == []
    hidden = found(with_route("older", "extra", "reference", extra=newer, older=older), "KT502")
    assert [proof.path[-1] for proof in hidden] == [1]


def test_a_step_that_wins_on_an_unknown_chip_alone_is_not_hidden():
    bounded = kernel("bounded", on=on_cuda(at_least("runs_on.capability.min", (8, 0))))
    assert found(with_route("bounded", "wide", "reference", bounded=bounded), "KT502") == []


def test_a_last_resort_that_is_hidden_is_a_note():
    all_of_it = kernel("all", on=on_cuda(portable=True))
    made = with_route("all", "reference", all=all_of_it)
    (proof,) = found(made, "KT503")
    assert rules()[proof.code].severity == "note"
    assert found(made, "KT502") == []


def test_a_denied_step_is_not_called_hidden_and_hides_nothing():
    made = table(route("fp8", "cuda", "fast", "wide", "reference"), denials=(deny("wide"),))
    assert found(made, "KT501", "KT502", "KT503") == []


def test_what_a_deployment_requires_or_prefers_hides_steps_on_purpose():
    for choice in ({"require": "wide"}, {"prefer": "wide"}):
        assert found(table(route("fp8", "cuda", "fast", "wide", "reference", **choice)), "KT501", "KT502") == []
    assert len(found(table(route("fp8", "cuda", "wide", "fast", "reference")), "KT502")) == 1


SIZES = st.sampled_from([at_least("accepts.n.min", 3), at_least("accepts.n.min", 9), at_most("accepts.n.max", 9)])
NEEDS = st.sampled_from([needs("needs.packages", "p", spec) for spec in (">=1", ">=2", "<2", "!=2.0", "==3")])
CHIPS = st.sampled_from([at_least("runs_on.capability.min", (9, 0)), at_most("runs_on.capability.max", (8, 9))])


def _row(draw, name):
    place = runs_on("cuda", *draw(st.lists(CHIPS, max_size=1)), portable=draw(st.booleans()))
    need = tuple(draw(st.lists(NEEDS, max_size=2)))
    return kernel(name, *draw(st.lists(SIZES, max_size=2)), on=[place], need=need)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_step_is_called_unreachable_exactly_when_no_chip_version_and_size_chooses_it(data):
    rows = {name: _row(data.draw, name) for name in "abc"}
    denial = deny("a", *data.draw(st.lists(st.sampled_from([needs("when.packages", "p", ">=2")]), max_size=1)))
    denials = data.draw(st.sampled_from(((), (denial,))))
    made = table(route("fp8", "cuda", *rows), rows=rows, denials=denials)
    undenied = table(route("fp8", "cuda", *rows), rows=rows)
    proofs = {p.path[-1] for p in prove_steps(survey_of(made)) if p.path[:3] == ("routes", "fp8", "cuda")}
    reached, accepted, claimed = set(), set(), set()
    chips, versions = ("sm80", "sm89", "sm90", "cuda:13.0"), (None, "0.5", "1", "2.0", "2.1", "3")
    for chip, version, n in product(chips, versions, (1, 5, 9, 10)):
        here = device(chip, made, packages={} if version is None else {"p": version})
        problem = Problem("fp8", n=n, k=4)
        reached.add(select(made, here, problem).kernel)
        accepted |= {name for name in rows if not refusals(made, name, here, problem)}
        claimed |= {name for name in rows if not refusals(undenied, name, here, problem)}
    switched_off = claimed - accepted
    assert {"abc"[place] for place in proofs} == set(rows) - reached - switched_off


# --- Coverage -------------------------------------------------------------------------------------------------------


def test_problems_that_nothing_takes_are_found_with_the_chips_and_the_smallest_witness():
    made = table(route("fp8", "cuda", "fast", "wide"))
    assert found(made, "KT504") == []
    narrow = with_route("narrow", narrow=kernel("narrow", at_least("accepts.n.min", 5), on=on_cuda(portable=True)))
    (proof,) = found(narrow, "KT504")
    assert proof.message.endswith("an unknown chip (cuda:13.0): n 1 to 4")
    assert chosen(narrow, proof.witness).kernel is None
    assert found(table(), "KT504") == []


def test_a_region_left_to_the_reference_is_a_note_with_its_region():
    made = with_route("fast", "reference")
    notes = found(made, "KT505")
    assert [proof.message.split(": ", 1)[0] for proof in notes] == [
        "only slow kernels take this on sm80, an unknown chip (cuda:13.0)",
        "only slow kernels take this on sm89, sm90, sm120, sm121",
    ]
    assert "every problem" in notes[0].message
    assert "k not a multiple of 128" in notes[1].message
    assert all(chosen(made, proof.witness).kernel == "reference" for proof in notes)
    assert found(table(), "KT505") == []


def test_a_chip_that_was_forgotten_between_others_is_found():
    listed = one_of("runs_on.architectures", "sm89", "sm90", "sm120")
    made = with_route("listed", "reference", listed=kernel("listed", on=on_cuda(listed)))
    (proof,) = found(made, "KT506")
    assert proof.message.startswith("sm121 left behind: sm89 has a fast kernel for this and they have none")
    assert chosen(made, proof.witness).kernel == "reference"
    both = one_of("runs_on.architectures", "sm89", "sm90", "sm120", "sm121")
    assert found(with_route("listed", "reference", listed=kernel("listed", on=on_cuda(both))), "KT506") == []


# --- Rows -----------------------------------------------------------------------------------------------------------


def test_a_native_fp8_row_that_only_its_place_keeps_from_a_chip_without_fp8_is_found():
    eager = kernel("eager", on=on_cuda(portable=True))
    made = with_route("wide", "eager", "reference", eager=eager)
    (proof,) = found(made, "KT507")
    assert proof.message.startswith("only its place keeps 'eager' from sm80, which has no FP8 units")
    assert proof.witness.endswith("--prefer eager")
    first = with_route("eager", "reference", eager=eager)
    (proof,) = found(first, "KT507")
    assert proof.message.startswith("'eager' is chosen on sm80")
    assert chosen(first, proof.witness).kernel == "eager"


def test_a_native_fp8_row_with_a_lower_bound_or_a_feature_is_sound():
    for limit in (at_least("runs_on.capability.min", (8, 9)), needs("runs_on.features", "mma_fp8")):
        row = kernel("sound", on=on_cuda(limit, portable=True))
        assert found(with_route("wide", "sound", "reference", sound=row), "KT507") == []
    weights = kernel("weights", on=on_cuda(portable=True), kind="weight_only")
    assert found(with_route("weights", "reference", weights=weights), "KT507") == []


def test_code_for_given_chips_that_names_none_is_found():
    made = with_route("bare", "reference", bare=kernel("bare", on=on_cuda(), kind="weight_only"))
    (proof,) = found(made, "KT507")
    assert "the code is not portable" in proof.message


def test_more_weight_layouts_than_meant_are_found_and_fewer_are_not():
    bands = ((1, 8), (9, 64), (65, 512))
    limits = [(at_least("accepts.m.min", a), at_most("accepts.m.max", b)) for a, b in bands]
    place = [runs_on("cuda", at_least("runs_on.capability.min", (8, 9)), portable=True)]
    rows = {f"b{i}": replace(kernel(f"b{i}", *limit, on=place), layout=f"layout{i}") for i, limit in enumerate(limits)}
    (proof,) = found(table(route("fp8", "cuda", *rows, "reference"), rows=rows), "KT508")
    assert "3 packed copies of its weights on sm89, sm90, sm120, sm121" in proof.message
    assert "weight_copies allows 1" in proof.message
    shared = {name: replace(row, layout="packed") for name, row in rows.items()}
    assert found(table(route("fp8", "cuda", *shared, "reference"), rows=shared), "KT508") == []
    allowed = replace(route("fp8", "cuda", *rows, "reference"), terms=Terms(3))
    assert found(table(allowed, rows=rows), "KT508") == []
    (none_allowed,) = found(table(replace(allowed, terms=Terms(0)), rows=shared), "KT508")
    assert "1 packed copy" in none_allowed.message


# --- The shipped table ------------------------------------------------------------------------------------------------


def test_the_shipped_table_has_notes_alone():
    assert {rules()[proof.code].severity for proof in prove(load_table())} <= {"note"}


@pytest.mark.parametrize("code", ["KT503", "KT505"])
def test_the_witnesses_of_the_shipped_table_show_what_is_claimed(code):
    made = load_table()
    proofs = [proof for proof in prove(made) if proof.code == code]
    assert proofs
    for proof in proofs:
        answer = chosen(made, proof.witness)
        slow = made.kernels[str(answer.kernel)].kind in ("emulation", "reference")
        assert slow if code == "KT505" else {c.kernel: c.verdict for c in answer.candidates}[_named(proof)] == "later"


def _named(proof) -> str:
    return proof.message.split("'")[1]
