"""The choice: order, verdicts, denials, forced kernels, unknown chips, remembered answers."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from handmade import at, at_least, at_most, deny, kernel, multiple_of, needs, one_of, route, table
from hypothesis import given
from hypothesis import strategies as st

from kerneltable.errors import ProblemError
from kerneltable.model import Device, Mark, Problem, Selection, Step, Table
from kerneltable.select import device, refusals, select

PROBLEM = Problem("fp8", n=256, k=256)


def chosen(made: Table, name: str = "h200", **problem: Any) -> str | None:
    return select(made, device(name, made), Problem("fp8", **{"n": 256, "k": 256, **problem})).kernel


def verdicts(selection: Selection) -> dict[str, str]:
    return {candidate.kernel: candidate.verdict for candidate in selection.candidates}


def predicates(selection: Selection, kernel_id: str) -> list[str]:
    return [r.predicate for c in selection.candidates if c.kernel == kernel_id for r in c.refusals]


def test_the_first_kernel_that_nothing_refuses_wins() -> None:
    assert chosen(table()) == "fast"
    assert chosen(table(), "a100") == "wide"
    assert chosen(table(), k=576) == "wide"
    assert chosen(table(), n=0, k=0) == "reference"


def test_a_name_stands_for_its_device() -> None:
    for name in ("h200", "sm89", "cuda:13.0"):
        assert select(table(), name, PROBLEM) == select(table(), device(name, table()), PROBLEM)


@pytest.mark.parametrize("wrong", ["a101", None, 90, {"platform": "cuda"}])
def test_what_is_no_device_is_refused_in_words(wrong: Any) -> None:
    with pytest.raises(ProblemError, match="device"):
        select(table(), wrong, PROBLEM)


def test_order_decides_between_kernels_that_would_do() -> None:
    assert chosen(table(route("fp8", "cuda", "reference", "fast"))) == "reference"
    assert chosen(table(route("fp8", "cuda", "fast", "reference"))) == "fast"


def test_every_candidate_is_listed_with_all_of_its_refusals_on_success_too() -> None:
    made = table()
    answer = select(made, device("a100", made), Problem("fp8", n=256, k=100, weight_block=(64, 64)))
    assert verdicts(answer) == {"fast": "refused", "wide": "chosen", "reference": "later"}
    assert [(r.predicate, r.where.line) for r in answer.candidates[0].refusals] == [
        ("runs_on.capability.min", 36),
        ("runs_on.features", 38),
        ("accepts.weight_block", 33),
        ("accepts.k.min", 34),
        ("accepts.k.multiple_of", 35),
    ]
    assert [candidate.where for candidate in answer.candidates] == [at(50), at(51), at(52)]


def test_a_kernel_that_does_not_run_on_the_platform_is_refused_at_its_row() -> None:
    made = table()
    answer = select(made, device("mi300x", made), PROBLEM)
    first = answer.candidates[0].refusals[0]
    assert (first.predicate, first.wanted, first.found, first.where) == ("runs_on", "cuda", "rocm", at(30))
    assert answer.kernel == "wide"


def test_a_kernel_without_any_platform_is_refused() -> None:
    made = table(route("fp8", "cpu", "nowhere"), rows={"nowhere": kernel("nowhere", on=[])})
    answer = select(made, device("epyc-genoa", made), PROBLEM)
    assert answer.kernel is None
    assert answer.candidates[0].refusals[0].wanted == "no platform"


def test_an_unknown_chip_gets_portable_rows_alone() -> None:
    made = table()
    answer = select(made, device("cuda:13.0", made), PROBLEM)
    assert verdicts(answer) == {"fast": "refused", "wide": "chosen", "reference": "later"}
    portable = answer.candidates[0].refusals[0]
    assert (portable.predicate, portable.found, portable.where) == (
        "runs_on.portable",
        "unknown capability 13.0",
        at(39),
    )
    assert answer.notes == ("the table does not know this chip (unknown capability 13.0): only portable rows may run",)
    assert predicates(answer, "fast") == ["runs_on.portable", "runs_on.capability.max", "runs_on.features"]


def test_a_portable_row_still_states_its_capability_for_an_unknown_chip() -> None:
    made = table()
    answer = select(made, device("cuda:7.9", made), PROBLEM)
    assert verdicts(answer) == {"fast": "refused", "wide": "refused", "reference": "chosen"}
    assert predicates(answer, "wide") == ["runs_on.capability.min"]


def test_a_step_with_when_limits_the_step_not_the_kernel() -> None:
    small = Step("fast", (at_most("when.m.max", 64, line=80),), at(79))
    made = table(route("fp8", "cuda", small, "reference"))
    h200 = device("h200", made)
    assert [chosen(made, m=m) for m in (1, 64, 65, None)] == ["fast", "fast", "reference", "reference"]
    assert predicates(select(made, h200, PROBLEM.at(65)), "fast") == ["when.m.max"]
    assert refusals(made, "fast", h200, PROBLEM.at(65)) == ()


def test_a_route_may_mix_when_on_device_and_problem() -> None:
    step = Step("fast", (one_of("when.architectures", "sm121"), multiple_of("when.n.multiple_of", 64)), at(79))
    made = table(route("fp8", "cuda", step, "reference"))
    assert [chosen(made, name) for name in ("dgx-spark", "h200")] == ["fast", "reference"]
    assert chosen(made, "dgx-spark", n=65) == "reference"


def test_a_preferred_kernel_goes_first_and_falls_through_with_a_note() -> None:
    made = table(route("fp8", "cuda", "fast", "wide", "reference", prefer="wide"))
    answer = select(made, device("h200", made), PROBLEM)
    assert [c.kernel for c in answer.candidates] == ["wide", "fast", "reference"]
    assert (answer.kernel, answer.notes, answer.candidates[0].where) == ("wide", (), at(60))
    fallen = select(made, device("h200", made), Problem("fp8", n=0, k=256))
    assert fallen.kernel == "fast"
    assert fallen.notes == ("'wide' is preferred (hand.yaml:60:5) but refuses: the route decides",)


def test_a_preferred_kernel_may_stand_outside_the_route_and_loses_the_when_of_its_step() -> None:
    narrow = Step("wide", (at_most("when.m.max", 1),), at(79))
    made = table(route("fp8", "cuda", narrow, "reference", prefer="wide"))
    assert chosen(made, m=100) == "wide"
    outside = table(route("fp8", "cuda", "reference", prefer="wide"))
    assert chosen(outside, m=100) == "wide"


def test_a_required_kernel_is_taken_or_nothing_is() -> None:
    made = table(route("fp8", "cuda", "fast", "wide", "reference", require="wide"))
    answer = select(made, device("h200", made), PROBLEM)
    assert verdicts(answer) == {"wide": "chosen", "fast": "refused", "reference": "refused"}
    first = answer.candidates[1].refusals[0]
    assert (first.predicate, first.wanted, first.found, first.where) == ("require", "wide (required)", "fast", at(60))
    refused = select(made, device("h200", made), Problem("fp8", n=0, k=256))
    assert refused.kernel is None
    assert set(verdicts(refused).values()) == {"refused"}
    assert refused.notes == ("'wide' is required (hand.yaml:60:5) and refuses: nothing else may be taken",)


def test_a_disabled_kernel_is_refused_with_the_reason() -> None:
    made = table(denials=(deny("fast", source="disable", reason="NaN, ticket 1234", until="2027-01-31"),))
    answer = select(made, device("h200", made), PROBLEM)
    refusal = answer.candidates[0].refusals[0]
    assert answer.kernel == "wide"
    assert (refusal.predicate, refusal.wanted, refusal.where) == ("disable", "not disabled", at(70))
    assert refusal.found == "NaN, ticket 1234 (until 2027-01-31)"


def test_an_erratum_holds_on_its_platform_and_where_its_predicates_fit() -> None:
    erratum = deny("fast", one_of("when.architectures", "sm121"), platform="cuda", link="https://example.org/1")
    made = table(denials=(erratum,))
    assert [chosen(made, name) for name in ("dgx-spark", "rtx-5090")] == ["wide", "fast"]
    found = select(made, device("dgx-spark", made), PROBLEM).candidates[0].refusals[0]
    assert (found.predicate, found.wanted, found.found) == (
        "erratum",
        "no erratum",
        "wrong at m=1 [https://example.org/1]",
    )
    assert chosen(table(denials=(deny("fast", platform="rocm"),))) == "fast"


def test_an_erratum_of_some_m_holds_for_an_unknown_m() -> None:
    made = table(denials=(deny("fast", at_most("when.m.max", 1)),))
    assert [chosen(made, m=m) for m in (1, 2, None)] == ["wide", "fast", "wide"]


def test_an_erratum_of_some_versions_holds_for_known_versions_only() -> None:
    made = table(denials=(deny("reference", needs("when.packages", "deep_gemm", "<2")),))

    def denied(**facts: Any) -> bool:
        return bool(refusals(made, "reference", Device("cpu", "x86-64-v4", **facts), PROBLEM))

    assert denied(packages={"deep-gemm": "1.9"})
    assert not denied(packages={"deep-gemm": "2.0"})
    assert not denied(packages={"deep-gemm": None})
    assert not denied(assume_all=True)
    assert not denied()


def test_an_erratum_of_a_package_of_any_version_holds_when_it_is_assumed() -> None:
    made = table(denials=(deny("reference", needs("when.packages", "deep_gemm")),))
    assert refusals(made, "reference", Device("cpu", "x86-64-v4", packages={"deep_gemm": None}), PROBLEM)
    assert not refusals(made, "reference", Device("cpu", "x86-64-v4"), PROBLEM)


def test_a_platform_without_a_route_is_named_in_a_note() -> None:
    made = table()
    answer = select(made, device("mi300x", made), Problem("w8a16", n=1, k=1))
    assert (answer.kernel, answer.candidates) == (None, ())
    assert answer.notes == ("scheme 'w8a16' (hand.yaml:14:5) has no route on platform 'rocm'; add one under routes",)


def test_a_platform_that_the_table_does_not_know_is_named_in_a_note() -> None:
    answer = select(table(), Device("cudaa", None), PROBLEM)
    assert answer.notes == ("the table does not know platform 'cudaa'; did you mean 'cuda'?",)


def test_an_empty_route_is_named_in_a_note() -> None:
    answer = select(table(route("fp8", "cpu")), Device("cpu", "x86-64-v4"), PROBLEM)
    assert answer.notes == ("the route of scheme 'fp8' on platform 'cpu' is empty (hand.yaml:49:5)",)


def test_the_problem_of_a_selection_is_complete() -> None:
    answer = select(table(), Device("cpu", "amx"), PROBLEM)
    asked = answer.problem
    assert (asked.weight_granularity, asked.weight_block, asked.weight_scale) == ("block", (128, 128), "f32")
    assert (asked.input_granularity, asked.input_scaling) == ("block", "dynamic")


def test_refusals_of_one_kernel_need_no_route() -> None:
    made = table(rows={"lonely": kernel("lonely", at_least("accepts.n.min", 512))})
    genoa = device("epyc-genoa", made)
    assert [r.predicate for r in refusals(made, "lonely", genoa, PROBLEM)] == ["accepts.n.min"]
    assert refusals(made, "lonely", genoa, Problem("fp8", n=512, k=1)) == ()


def test_an_unknown_kernel_or_scheme_is_an_error_with_the_nearest_name() -> None:
    made = table()
    h200 = device("h200", made)
    with pytest.raises(ProblemError, match="unknown kernel 'fasst'; did you mean 'fast'"):
        refusals(made, "fasst", h200, PROBLEM)
    with pytest.raises(ProblemError, match="unknown scheme 'fp88'; did you mean 'fp8'"):
        select(made, h200, Problem("fp88", n=1, k=1))


def test_a_repeated_question_is_answered_from_memory_and_equal() -> None:
    made = table()
    h200 = device("h200", made)
    first = select(made, h200, PROBLEM)
    assert select(made, device("h200", made), Problem("fp8", n=256, k=256)) is first
    assert select(table(), h200, PROBLEM) == first


def test_memory_is_bounded() -> None:
    made = table()
    h200 = device("h200", made)
    for n in range(10_000):
        select(made, h200, Problem("fp8", n=n, k=128))
    assert len(made.answers) <= 4096


def test_devices_that_differ_in_packages_get_their_own_answers() -> None:
    made = table()
    old, new = (device("h200", made, packages={"torch": version}) for version in ("2.9", "2.11"))
    assert [select(made, d, PROBLEM).kernel for d in (old, new, old)] == ["wide", "fast", "wide"]


def test_two_tables_do_not_share_answers() -> None:
    one, other = table(), table(denials=(deny("fast"),))
    h200 = device("h200", one)
    assert [select(t, h200, PROBLEM).kernel for t in (one, other, one)] == ["fast", "wide", "fast"]


def test_threads_get_equal_answers() -> None:
    made = table()
    wrong: list[object] = []

    def ask(seed: int) -> None:
        for i in range(400):
            size = 128 * ((i * seed) % 50)
            answer = select(made, device("h200", made), Problem("fp8", n=256, k=size))
            if answer.kernel != ("fast" if size else "wide"):
                wrong.append((size, answer))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_selection_survives_pickling() -> None:
    made = table()
    answer = select(made, device("a100", made), PROBLEM)
    assert pickle.loads(pickle.dumps(answer)) == answer


@given(
    n=st.integers(0, 4096),
    k=st.integers(0, 4096),
    m=st.none() | st.integers(0, 4096),
    name=st.sampled_from(["a100", "rtx-4090", "h200", "dgx-spark", "mi300x", "arc-b580", "epyc-genoa", "cuda:13.0"]),
)
def test_verdicts_follow_from_refusals_and_forcing_agrees(n: int, k: int, m: int | None, name: str) -> None:
    made = table()
    asked, where = Problem("fp8", n=n, k=k, m=m), device(name, made)
    answer = select(made, where, asked)
    free = [c.kernel for c in answer.candidates if not c.refusals]
    assert answer.kernel == (free[0] if free else None)
    for candidate in answer.candidates:
        wanted = "refused" if candidate.refusals else "chosen" if candidate.kernel == answer.kernel else "later"
        assert candidate.verdict == wanted
        assert candidate.refusals == refusals(made, candidate.kernel, where, asked)
        assert all(isinstance(r.where, Mark) and r.wanted and r.found for r in candidate.refusals)


def test_the_package_can_be_called_as_the_function() -> None:
    import kerneltable

    made = table()
    assert kerneltable.select(made, device("h200", made), PROBLEM).kernel == "fast"
    assert kerneltable.select.select(made, device("h200", made), PROBLEM).kernel == "fast"
