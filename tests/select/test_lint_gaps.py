"""KT504: problems that nothing takes are laid to what left them without a kernel, once for each cause."""

from __future__ import annotations

from dataclasses import replace

from handmade import EVERYWHERE, at, at_least, deny, kernel, needs, route, runs_on, table

from kerneltable.model import Demand, Step, Terms
from kerneltable.select.lint import prove


def gaps(made):
    return [proof for proof in prove(made) if proof.code == "KT504"]


def switched_off(name: str, line: int = 70, **more):
    return replace(deny(name, source="disable", **more), mark=at(line))


def test_what_a_required_kernel_refuses_is_laid_to_the_line_that_requires_it():
    (proof,) = gaps(table(route("fp8", "cuda", "fast", "wide", "reference", require="fast")))
    assert (proof.mark, proof.length) == (at(60), len("fast"))
    assert proof.path == ("routes", "fp8", "cuda", "require")
    assert proof.message.startswith("'fast' is required here, and nothing else may take what it refuses: fp8 on sm80,")
    assert "k not a multiple of 128" in proof.message
    assert "prefer" in proof.help


def test_a_required_kernel_that_takes_everything_leaves_nothing():
    assert gaps(table(route("fp8", "cuda", "fast", "wide", "reference", require="reference"))) == []
    assert gaps(table(route("fp8", "cuda", "fast", "wide", "reference", prefer="fast"))) == []


def test_the_packages_of_a_required_kernel_are_taken_to_be_installed():
    extra = kernel("extra", on=[runs_on("cuda", portable=True)], need=(needs("needs.packages", "flashinfer"),))
    steps = ("extra", "fast", "reference")
    assert gaps(table(route("fp8", "cuda", *steps, require="extra"), rows={"extra": extra})) == []
    narrow = replace(extra, runs_on={"cuda": runs_on("cuda", needs("runs_on.features", "mma_fp8"), portable=True)})
    (proof,) = gaps(table(route("fp8", "cuda", *steps, require="extra"), rows={"extra": narrow}))
    assert proof.message.endswith("fp8 on sm80, an unknown chip (cuda:13.0): every problem")
    assert "--with all" in proof.witness


def test_a_disabled_last_resort_is_one_finding_for_all_routes_at_its_own_line():
    made = table(denials=(switched_off("reference"),))
    (proof,) = gaps(made)
    assert (proof.mark, proof.length) == (at(70), len("reference"))
    assert proof.path == ("disable", 0, "kernel")
    assert proof.message.startswith("'reference' is switched off here, and nothing else takes this: fp8 on ")
    assert "end the route" not in proof.help


def test_a_disabled_kernel_that_others_stand_in_for_is_no_gap():
    assert gaps(table(denials=(switched_off("fast"), switched_off("wide", 71)))) == []


def test_of_two_disabled_kernels_the_last_resort_is_the_cause():
    denials = (switched_off("wide", 71), switched_off("reference", 72))
    assert [proof.mark for proof in gaps(table(denials=denials))] == [at(72)]


def test_the_same_kernel_disabled_by_two_rows_makes_two_findings():
    rows = [switched_off("reference", 70 + place, platform=name) for place, name in enumerate(EVERYWHERE)]
    lines = [proof.mark.line for proof in gaps(table(denials=tuple(rows)))]
    assert lines == [72, 73]  # xpu and cpu; on cuda and rocm 'wide' takes everything


def test_a_demand_that_no_kernel_keeps_is_the_cause_in_each_route_it_speaks_of():
    demand = Demand("batch_invariant", at(80))
    demanding = replace(route("fp8", "cuda", "fast", "wide", "reference"), terms=Terms(demands=(demand,)))
    (proof,) = gaps(table(demanding))
    assert (proof.mark, proof.path) == (at(80), ("routes", "fp8", "cuda", "plans", "batch_invariant"))
    assert proof.message.startswith("`batch_invariant` is demanded here, and no kernel that keeps it takes this: fp8")
    other = replace(demanding, scheme="w8a16", steps=(Step("wide", (), at(51)),))
    marks = {("plans", "batch_invariant"): at(80)}
    (proof,) = gaps(table(demanding, other, marks=marks))
    assert proof.path == ("plans", "batch_invariant")


def test_the_gap_of_the_route_itself_stays_with_the_route_beside_that_of_an_override():
    only = route("fp8", "cuda", "fast", require="fast")
    found = gaps(table(only))
    assert {(proof.mark, proof.path) for proof in found} == {(at(49), ("routes", "fp8", "cuda"))}
    assert {proof.help for proof in found} == {"end the route with `reference`, or widen a row"}
    narrow = kernel("narrow", at_least("accepts.n.min", 5), on=[runs_on("cuda", portable=True)])
    off = (switched_off("narrow"),)
    both = gaps(table(route("fp8", "cuda", "fast", "narrow", require="fast"), rows={"narrow": narrow}, denials=off))
    assert {proof.mark for proof in both} == {at(49), at(70)}
