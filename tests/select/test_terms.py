"""What the plans of a route keep to: copies of the weights are counted, promises are demanded, bands are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from handmade import at, at_least, at_most, kernel, multiple_of, route, table

from kerneltable.model import Demand, Numerics, Problem, Step, Terms
from kerneltable.select import device, explain, select
from kerneltable.select.bands import Rows, kept_by, rows_of
from kerneltable.select.diff import diff
from kerneltable.select.region_text import box_text
from kerneltable.select.regions import winners
from kerneltable.select.space import space_of
from kerneltable.select.terms import bytes_of, size_text
from kerneltable.table import load_table


def packing(name, layout, *limits, **promises):
    numerics = Numerics("f32", promises.get("deterministic", True), promises.get("batch_invariant", False), at(21))
    return replace(kernel(name, *limits), layout=layout, numerics=numerics)


SMALL, LARGE, REST = (
    packing("small", "tiles", at_most("accepts.m.max", 16)),
    packing("large", "strips", at_least("accepts.m.min", 65)),
    packing("rest", "tiles"),
)
BANDED = {row.id: row for row in (SMALL, LARGE, REST)}


def banded(copies=1, *demands, rows=BANDED, steps=("small", "large", "rest", "reference")):
    terms = Terms(copies, at(80), tuple(Demand(name, at(81)) for name in demands))
    return table(replace(route("fp8", "cuda", *steps), terms=terms), rows=rows)


def ask(made, m=None, **more):
    return select(made, device("h200", made), Problem("fp8", n=256, k=384, m=m, **more))


def by_m(made, *sizes):
    return [ask(made, m).kernel for m in sizes]


def refusals(selection, kernel_id):
    return [r for c in selection.candidates if c.kernel == kernel_id for r in c.refusals]


# --- Copies of the weights --------------------------------------------------------------------------------------------


def test_a_second_layout_is_refused_where_one_copy_is_allowed_and_taken_where_two_are():
    assert by_m(banded(1), 1, 17, 65, None) == ["small", "rest", "rest", "rest"]
    assert by_m(banded(2), 1, 17, 65, None) == ["small", "rest", "large", "rest"]


def test_the_refusal_says_how_many_copies_there_may_be_what_is_kept_and_where_that_was_set():
    (refused,) = refusals(ask(banded(1), 100), "large")
    assert refused.predicate == "plans.weight_copies"
    assert refused.wanted == "at most 1 packed copy of the weights"
    assert refused.found == "layout strips besides tiles: about 96.0 KiB more"
    assert refused.where == at(80)


def test_a_layout_over_the_budget_is_refused_for_every_m_of_the_layer():
    assert [r.predicate for r in refusals(ask(banded(1), 3), "large")] == ["plans.weight_copies", "accepts.m.min"]


def test_without_copies_only_kernels_that_take_the_checkpoint_are_left():
    assert by_m(banded(0), 1, 17, 65, None) == ["reference"] * 4
    assert "at most 0 packed copies" in refusals(ask(banded(0), 1), "small")[0].wanted


def test_the_first_steps_of_the_route_have_the_copies():
    turned = banded(1, steps=("large", "small", "rest", "reference"))
    assert by_m(turned, 1, 17, 65, None) == ["reference", "reference", "large", "reference"]


def test_a_step_that_wins_nothing_is_no_copy_and_stays_for_when_others_fail():
    made = banded(1, steps=("rest", "large", "reference"))
    assert {c.kernel: c.verdict for c in ask(made, 100).candidates} == {
        "rest": "chosen", "large": "later", "reference": "later",
    }  # fmt: skip


def test_a_layer_that_no_second_layout_takes_is_left_alone():
    rows = {
        **BANDED,
        "large": packing("large", "strips", at_least("accepts.m.min", 65), at_least("accepts.n.min", 512)),
    }
    assert refusals(ask(banded(1, rows=rows), 100), "large")[0].predicate == "accepts.n.min"
    assert len(refusals(ask(banded(1, rows=rows), 100), "large")) == 1


def test_a_required_kernel_is_held_to_the_copies_too():
    made = banded(0)
    forced = replace(made.routes["fp8", "cuda"], require=route("fp8", "cuda", require="rest").require)
    answer = ask(table(forced, rows=BANDED), 1)
    assert answer.kernel is None
    assert refusals(answer, "rest")[0].predicate == "plans.weight_copies"


def test_regions_follow_the_copies_layer_by_layer():
    made = banded(1)
    space = space_of("fp8", made)
    won = {
        w.kernel: [box_text(space, b, space.ordinary) for b in w.boxes]
        for w in winners(made, device("h200", made), space)
    }
    assert "large" not in won
    assert "large" in {w.kernel for w in winners(made, device("h200", made), space, copies=2)}


def test_a_change_of_the_copies_is_a_difference():
    changes = [c for c in diff(banded(2), banded(1)) if "sm90" in [d.architecture for d in c.devices]]
    assert [(c.before.kernel, c.after.kernel, c.loudness) for c in changes] == [("large", "rest", "layout")]
    assert diff(banded(2), banded(3)) == ()


# --- Promises ---------------------------------------------------------------------------------------------------------

STEADY = {
    "few": packing("few", "checkpoint", at_most("accepts.m.max", 16), batch_invariant=True),
    "odd": packing("odd", "checkpoint", batch_invariant=False),
    "any": packing("any", "checkpoint", batch_invariant=True, deterministic=False),
}


def steady(*demands):
    return banded(1, *demands, rows=STEADY, steps=("few", "odd", "any", "reference"))


def test_a_row_that_does_not_promise_what_is_demanded_is_refused_with_the_demand():
    assert by_m(steady(), 1, 17) == ["few", "odd"]
    answer = ask(steady("batch_invariant"), 17)
    assert answer.kernel == "any"
    (refused,) = refusals(answer, "odd")
    assert (refused.predicate, refused.wanted, refused.where) == ("plans.batch_invariant", "true", at(81))
    assert refused.found == "false (hand.yaml:21:5)"


def test_under_batch_invariance_one_kernel_serves_every_m():
    made = steady("batch_invariant")
    assert by_m(made, 1, 16, 17, 4096, None) == ["any"] * 5
    answer = ask(made, 1)
    assert [r.predicate for r in refusals(answer, "few")] == ["accepts.m.max"]
    assert any("one kernel serves every m" in note for note in answer.notes)
    assert rows_of(made, device("h200", made), "fp8") is None
    assert rows_of(steady(), device("h200", steady()), "fp8") is not None


def test_demands_are_held_together():
    assert ask(steady("deterministic"), 17).kernel == "odd"
    assert ask(steady("deterministic", "batch_invariant"), 17).kernel is None


def test_a_dynamic_scale_of_the_whole_input_is_never_batch_invariant():
    made = load_table(overrides=[("demand", "override: 1\nplans: {batch_invariant: true}\n")])
    where = device("epyc-genoa", made)
    space = space_of("fp8_w8a8", made)
    asked = {"tensor": ("tensor", "dynamic"), "token": ("token", "dynamic"), "static": ("tensor", "static")}
    found = {}
    for name, (granularity, scaling) in asked.items():
        problem = Problem("fp8_w8a8", n=64, k=64, m=3, input_granularity=granularity, input_scaling=scaling)
        found[name] = select(made, where, problem)
    assert {name: answer.kernel for name, answer in found.items()} == {
        "tensor": None, "token": "cpu_fp8", "static": "cpu_fp8",
    }  # fmt: skip
    assert refusals(found["tensor"], "cpu_fp8")[0].found == "one dynamic scale for the tensor"
    for winner in winners(made, where, space):
        for box in winner.boxes:
            assert select(made, where, space.problem(box)).kernel == winner.kernel


# --- Bands and memory -------------------------------------------------------------------------------------------------


def test_the_bands_of_a_layer_are_those_that_select_finds():
    made = banded(2)
    kept = kept_by(made, ask(made))
    assert [str(band) for band in kept.bands] == ["m 1 to 16: small", "m 17 to 64: rest", "m from 65: large"]
    assert (kept.copies, kept.allowed) == (("tiles", "strips"), 2)
    for band in kept.bands:
        assert band.kernel is not None
        assert by_m(made, band.first, band.last or 10**6) == [band.kernel] * 2


def test_a_route_that_asks_for_multiples_of_m_shows_them_and_tells_them_apart():
    even = kernel("even", multiple_of("accepts.m.multiple_of", 4))
    made = table(route("fp8", "cuda", "even", "reference"), rows={"even": even})
    kept = kept_by(made, ask(made))
    assert [str(band) for band in kept.bands] == ["any m: reference", "m from 4 (multiples of 4): even"]
    found = rows_of(made, device("h200", made), "fp8")
    assert found is not None
    assert found.place(4) == found.place(8) != found.place(6) == found.place(1)


def test_m_with_one_place_have_one_answer():
    made = banded(2)
    found = rows_of(made, device("h200", made), "fp8")
    assert found == Rows((1, 17, 65), ())
    places: dict[object, set[str | None]] = {}
    for m in range(1, 200):
        places.setdefault(found.place(m), set()).add(ask(made, m).kernel)
    assert [len(kernels) for kernels in places.values()] == [1, 1, 1]


@pytest.mark.parametrize(("details", "scales"), [
    ({}, 2 * 3 * 4), ({"weight_scale": "e8m0"}, 2 * 3), ({"weight_granularity": "tensor"}, 4),
])  # fmt: skip
def test_the_bytes_of_a_layer_are_its_codes_and_scales(details, scales):
    found = bytes_of(ask(banded(), **details).problem)
    assert (found.codes, found.scales) == (256 * 384, scales)


def test_sizes_are_said_in_the_unit_that_fits():
    assert [size_text(n) for n in (512, 2**20 - 1, 2**20, 28 * 2**20)] == [
        "0.5 KiB",
        "1024.0 KiB",
        "1.0 MiB",
        "28.0 MiB",
    ]


def test_the_explanation_shows_bands_and_memory():
    made = banded(2)
    lines = explain.text(made, ask(made))
    assert "  bands    m 1 to 16: small; m 17 to 64: rest; m from 65: large" in lines
    assert lines[-1] == (
        "  memory   weights and scales 96.0 KiB as in the checkpoint, packed as tiles and as strips, about 96.0 KiB "
        "more each (copies allowed: 2)"
    )
    plan = explain.as_json(made, ask(made))["plan"]
    assert plan["bands"][2] == {"first": 65, "last": None, "multiples": [], "kernel": "large", "layout": "strips"}
    assert plan["checkpoint_bytes"] == 256 * 384 + 24
    assert [copy["layout"] for copy in plan["copies"]] == ["tiles", "strips"]
    assert (plan["weight_copies"], plan["demands"]) == (2, [])


def test_a_step_that_takes_some_m_says_which_where_m_is_unknown():
    made = banded(2)
    asked = ask(made)
    lines, steps = explain.text(made, asked), {one.kernel: one.where for one in asked.candidates}
    assert [line for line in lines if line.startswith("  by band")] == [
        f"  by band  small      m 1 to 16 ({steps['small']})",
        f"  by band  large      m from 65 ({steps['large']})",
    ]
    assert not [line for line in explain.text(made, ask(made, 17)) if line.startswith("  by band")]


def test_a_layer_of_one_band_has_no_line_of_bands():
    made = table(route("fp8", "cuda", Step("wide", (), at(50)), "reference"))
    assert not [line for line in explain.text(made, ask(made)) if line.startswith("  bands")]
