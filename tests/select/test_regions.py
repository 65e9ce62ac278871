"""The set algebra against brute force: for random tables the regions and `select` agree on every small problem."""

from __future__ import annotations

from dataclasses import replace

from handmade import at_least, at_most, deny, kernel, multiple_of, one_of, route, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_tables import details, devices, grid, holds, place_of, tables

from kerneltable.model import MultipleOf, Problem, Range, Terms
from kerneltable.model.predicates import LARGEST_SIZE
from kerneltable.select import complete, device, select
from kerneltable.select.atoms import cells_of
from kerneltable.select.boxes import joined, meet, minus, minus_all
from kerneltable.select.region_text import box_json, box_text, explain_command, spans, whole
from kerneltable.select.regions import simplest_problem, winners
from kerneltable.select.space import Axis, domain, space_of

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
BOX = st.tuples(*(st.integers(1, 7) for _ in range(3)))
BOXES = st.lists(BOX, max_size=5)


def points(boxes):
    """The points of a union of boxes with three axes of three atoms."""
    every = [(x, y, z) for x in range(3) for y in range(3) for z in range(3)]
    return {p for p in every for box in boxes if all(mask >> place & 1 for place, mask in zip(p, box, strict=True))}


@MANY
@given(BOXES, BOX)
def test_subtracting_a_box_is_subtracting_its_points(boxes, taken):
    assert points(minus(boxes, taken)) == points(boxes) - points([taken])


@MANY
@given(BOXES, BOX)
def test_what_is_left_of_disjoint_boxes_is_disjoint(boxes, taken):
    apart = minus_all([(7, 7, 7)], boxes)
    left = minus(apart, taken)
    assert sum(len(points([box])) for box in left) == len(points(left))


@MANY
@given(BOXES)
def test_joining_boxes_keeps_every_point_and_adds_none(boxes):
    assert points(joined(boxes)) == points(boxes)
    assert len(joined(boxes)) <= len(set(boxes))


@MANY
@given(BOX, BOX)
def test_what_lies_in_two_boxes_is_what_both_hold(one, other):
    both = meet(one, other)
    assert points([] if both is None else [both]) == points([one]) & points([other])


def sized(place: str = "accepts.n"):
    number = st.integers(0, 200)
    mark = at_least("accepts.n.min", 0).mark
    return st.one_of(
        st.builds(lambda v: Range(f"{place}.min", v, None, mark), number),
        st.builds(lambda v: Range(f"{place}.max", None, v, mark), number),
        st.builds(lambda d: MultipleOf(f"{place}.multiple_of", d, mark), st.integers(1, 40)),
    )


@MANY
@given(st.lists(sized(), max_size=7))
def test_every_number_lies_in_one_cell_whose_smallest_is_right(predicates):
    cells = cells_of(predicates)
    divisors = {p.divisor for p in predicates if isinstance(p, MultipleOf)} - {1}
    for cell in cells:
        assert cell.low <= cell.smallest <= cell.high <= LARGEST_SIZE
        assert {d for d in divisors if cell.smallest % d == 0} == cell.multiples
    for number in [*range(450), LARGEST_SIZE - 1, LARGEST_SIZE]:
        signature = {d for d in divisors if number % d == 0}
        (cell,) = [c for c in cells if c.low <= number <= c.high and c.multiples == signature]
        assert cell.smallest <= number


@MANY
@given(st.lists(sized(), max_size=4), st.data())
def test_spans_say_exactly_the_numbers_of_a_mask(predicates, data):
    cells = cells_of(predicates)
    axis = Axis("n", tuple({"n": cell.smallest} for cell in cells), cells)
    mask = data.draw(st.integers(1, axis.full))
    within = data.draw(st.sampled_from((axis.full, axis.full | mask)))
    found = spans(axis, mask, within)
    for number in range(450):
        problem = Problem("fp8", n=number, k=1, weight_granularity="tensor")
        said = [s for s in found if s.low <= number <= s.high and number % s.multiple_of == 0]
        said = [s for s in said if all(number % d for d in s.not_multiple_of)]
        assert bool(said) == bool(mask >> place_of(axis, problem) & 1), (number, found)


@FEW
@given(tables(), st.data())
def test_regions_and_select_agree_on_every_small_problem(made, data):
    chip, finite = data.draw(devices(made)), data.draw(details())
    space = space_of("fp8", made)
    regions = winners(made, chip, space)
    first = next(grid(made, finite))
    fixed = [place_of(axis, first) for axis in space.axes]
    parts = [
        (winner.kernel, box)
        for winner in regions
        for box in winner.boxes
        if all(mask >> place & 1 for axis, mask, place in zip(space.axes, box, fixed, strict=True) if not axis.cells)
    ]
    for problem in grid(made, finite):
        holding = [kernel for kernel, box in parts if holds(space, box, problem)]
        assert holding == [select(made, chip, problem).kernel], problem


def test_a_step_that_takes_no_row_at_all_needs_no_copy_of_the_weights():
    """No layer has no rows, but a problem may, and both ways to ask give it the same kernel."""
    none = replace(kernel("none", at_most("accepts.m.max", 0)), layout="tiles")
    two = replace(kernel("two", at_most("accepts.m.max", 2)), layout="tiles")
    others = dict.fromkeys((0, 1, None), "reference")
    for name, expected in (("none", others | {0: "none"}), ("two", others)):
        asked = replace(route("fp8", "cuda", name, "reference"), terms=Terms(0))
        made = table(asked, rows={"none": none, "two": two})
        chip, space = device("sm90", made), space_of("fp8", made)
        for m, wanted in expected.items():
            problem = complete(made.schemes["fp8"], Problem("fp8", n=1, k=1, m=m))
            assert select(made, chip, problem).kernel == wanted
            places = [place_of(axis, problem) for axis in space.axes]
            winning = [
                one.kernel for one in winners(made, chip, space) for box in one.boxes
                if all(mask >> place & 1 for mask, place in zip(box, places, strict=True))
            ]  # fmt: skip
            assert winning == [wanted]


@FEW
@given(tables(), st.data())
def test_the_simplest_problem_of_a_region_is_won_by_its_kernel(made, data):
    chip = data.draw(devices(made))
    space = space_of("fp8", made)
    for winner in winners(made, chip, space):
        for box in winner.boxes:
            assert select(made, chip, space.problem(box)).kernel == winner.kernel
        assert select(made, chip, simplest_problem(space, winner.boxes)).kernel == winner.kernel


def test_a_space_holds_every_detail_that_a_scheme_takes_and_no_other():
    made = table(rows={"odd": kernel("odd", one_of("accepts.weight_block", "32x64"))})
    made = table(route("fp8", "cuda", "odd", "reference"), rows=dict(made.kernels))
    space = space_of("fp8", made)
    weights = [(a["weight_granularity"], a["weight_block"]) for a in space.axes[0].atoms]
    assert [w for w in weights if w[0] == "block"] == [("block", b) for b in ("128x128", "32x64", "64x64")]
    assert domain(space, made) == space.full
    assert complete(made.schemes["fp8"], space.problem(space.full)) == space.problem(space.full)


def test_what_a_table_cannot_be_asked_lies_outside_of_its_domain():
    made = table()
    fp8 = made.schemes["fp8"]
    narrow = table(
        schemes={"fp8": replace(fp8, weight=replace(fp8.weight, scales=("f32",), granularities=("tensor",)))}
    )
    space = space_of("fp8", made, narrow)
    known = domain(space, narrow)
    assert known is not None
    assert [axis.name for axis, mask in zip(space.axes, known, strict=True) if mask != axis.full] == [
        "weight",
        "weight_scale",
    ]
    assert domain(space, made) == space.full
    assert domain(space, table(schemes={"w8a16": made.schemes["w8a16"]})) is None


def test_text_and_json_name_only_what_a_region_asks():
    rows = {"odd": kernel("odd", multiple_of("accepts.n.multiple_of", 16), at_least("accepts.m.min", 3))}
    made = table(route("fp8", "cuda", "odd", "reference"), rows=rows)
    space = space_of("fp8", made)
    ordinary = whole(space, made)
    odd, rest = winners(made, device("sm90", made), space, ordinary)
    assert [box_text(space, box, ordinary) for box in odd.boxes] == ["n multiple of 16; m >= 3"]
    assert [box_json(space, box, ordinary) for box in odd.boxes] == [
        {"n": [{"min": 16, "multiple_of": 16}], "m": [{"min": 3}], "m_unknown": False}
    ]
    assert [box_text(space, box, ordinary) for box in rest.boxes] == [
        "n not a multiple of 16",
        "n multiple of 16; m 1 to 2 or unknown",
    ]
    assert box_text(space, ordinary, ordinary) == "every problem"


def test_the_command_says_what_differs_from_the_scheme_and_nothing_else():
    made = table()
    plain = complete(made.schemes["fp8"], Problem("fp8", n=16, k=32))
    assert explain_command(made, plain, "sm90") == "kerneltable explain fp8 --device sm90 --n 16 --k 32"
    odd = complete(
        made.schemes["fp8"],
        Problem("fp8", n=1, k=2, m=3, input="f16", bias=True, weight_block=(7, 9), weight_scale="e8m0"),
    )
    assert explain_command(made, odd, "sm90", "-f a.yaml") == (
        "kerneltable explain fp8 --device sm90 --n 1 --k 2 --m 3 --input f16 --output bf16 --bias "
        "--weight-block 7x9 --weight-scale e8m0 -f a.yaml"
    )


def test_a_denial_of_some_m_holds_for_an_unknown_m_and_a_limit_of_a_row_does_not_fit_it():
    few = at_most("when.m.max", 8)
    made = table(route("fp8", "cuda", "wide", "reference"), denials=(deny("wide", few),))
    space, chip = space_of("fp8", made), device("sm90", made)
    ordinary = whole(space, made)
    wide, rest = winners(made, chip, space, ordinary)
    assert [box_text(space, box, ordinary) for box in wide.boxes] == ["m >= 9"]
    assert [box_text(space, box, ordinary) for box in rest.boxes] == ["m 1 to 8 or unknown"]
    assert select(made, chip, Problem("fp8", n=1, k=1)).kernel == "reference"


def test_a_limit_on_m_leaves_an_unknown_m_to_the_next_step():
    rows = {"few": kernel("few", at_most("accepts.m.max", 8))}
    made = table(route("fp8", "cuda", "few", "reference"), rows=rows)
    space, chip = space_of("fp8", made), device("sm90", made)
    ordinary = whole(space, made)
    few, rest = winners(made, chip, space, ordinary)
    assert [box_text(space, box, ordinary) for box in (*few.boxes, *rest.boxes)] == ["m 1 to 8", "m >= 9 or unknown"]
