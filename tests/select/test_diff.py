"""Differences between two tables: exact against brute force, and said as loudly as they are."""

from __future__ import annotations

from dataclasses import replace

from handmade import EVERYWHERE, at_least, at_most, kernel, multiple_of, one_of, route, runs_on, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_tables import details, devices, grid, holds, tables

from kerneltable.model import OneOf
from kerneltable.select import device, select
from kerneltable.select.diff import LOUDNESS, Side, diff
from kerneltable.select.region_text import box_text

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=15, deadline=None, suppress_health_check=QUIET)


def said(changes):
    """Scheme, architectures, from, to and region of each change."""
    return [
        (
            change.scheme,
            [d.architecture or d.name for d in change.devices],
            change.before.kernel,
            change.after.kernel,
            [box_text(change.space, box, change.space.ordinary) for box in change.boxes],
        )
        for change in changes
    ]


def side(made, kernel_id):
    """Who computes, as the difference compares it."""
    if kernel_id is None:
        return (None,)
    row = made.kernels[kernel_id]
    n = row.numerics
    return kernel_id, row.kind, row.layout, n.accumulator, n.deterministic, n.batch_invariant


@FEW
@given(tables(), tables(), st.data())
def test_the_changes_are_exactly_the_problems_whose_decision_changes(one, other, data):
    chip, finite = data.draw(devices(one)), data.draw(details())
    changes = diff(one, other, [(chip, chip)])
    for problem in grid(one, finite):
        if problem.n < 1 or problem.k < 1 or problem.m == 0:
            continue
        before, after = select(one, chip, problem).kernel, select(other, chip, problem).kernel
        found = [
            (change.before.kernel, change.after.kernel)
            for change in changes
            if change.scheme == "fp8" and any(holds(change.space, box, problem) for box in change.boxes)
        ]
        same = side(one, before) == side(other, after)
        assert found == ([] if same else [(before, after)]), problem


@FEW
@given(tables(), tables())
def test_every_change_is_shown_by_its_problem_on_every_device(one, other):
    for change in diff(one, other):
        for chip in change.devices:
            assert select(one, chip, change.problem).kernel == change.before.kernel
            assert select(other, chip, change.problem).kernel == change.after.kernel


@FEW
@given(tables())
def test_a_table_does_not_differ_from_itself(made):
    assert diff(made, made) == ()


def test_a_reorder_that_exposes_a_kernel_shows_exactly_where():
    unbounded = kernel("open", multiple_of("accepts.k.multiple_of", 64), on=[runs_on("cuda", portable=True)])
    one = table(route("fp8", "cuda", "fast", "wide", "open", "reference"), rows={"open": unbounded})
    other = table(route("fp8", "cuda", "open", "fast", "wide", "reference"), rows={"open": unbounded})
    chips = ["sm80", "cuda:13.0"]
    tensor_core = ["sm89", "sm90", "sm120", "sm121"]
    assert sorted(said(diff(one, other)), key=lambda row: (row[2], len(row[1]))) == [
        ("fp8", tensor_core, "fast", "open", ["weight block 128x128; k multiple of 128"]),
        ("fp8", chips, "wide", "open", ["k multiple of 64"]),
        (
            "fp8",
            tensor_core,
            "wide",
            "open",
            [
                "weight block 128x128; k multiple of 64, not of 128",
                "weight another block (such as 64x64) or tensor; k multiple of 64",
            ],
        ),
    ]


def test_losing_the_fast_kernel_is_louder_than_changing_it():
    one = table()
    slow = table(route("fp8", "cuda", "reference"), route("fp8", "rocm"))
    changes = diff(one, slow)
    assert [change.loudness for change in changes][:2] == ["lost", "slower"]
    assert changes[0].after == Side()
    assert [LOUDNESS.index(c.loudness) for c in changes] == sorted(LOUDNESS.index(c.loudness) for c in changes)
    assert diff(slow, one)[0].loudness == "kind"


def test_the_same_kernel_with_another_layout_or_rounding_is_a_change():
    one = table()
    row = one.kernels["fast"]
    packed = table(rows={"fast": replace(row, layout="packed")})
    (change,) = diff(one, packed)
    assert (change.loudness, change.differences()) == ("layout", {"layout": ("checkpoint", "packed")})
    rounded = table(rows={"fast": replace(row, numerics=replace(row.numerics, accumulator="mma_f32"))})
    (change,) = diff(one, rounded)
    assert (change.loudness, change.differences()) == ("numerics", {"accumulator": ("f32", "mma_f32")})
    assert diff(one, table(rows={"fast": replace(row, why="other words", status="verified")})) == ()


def test_a_chip_that_one_table_does_not_know_is_an_unknown_chip_there():
    one = table()
    cuda = one.platforms["cuda"]
    older = {name: chip for name, chip in cuda.architectures.items() if name != "sm121"}
    before = table(platforms={**one.platforms, "cuda": replace(cuda, architectures=older, devices={})})
    assert {(c[2], c[3]): c[1] for c in said(diff(before, one))} == {("wide", "fast"): ["sm121"]}


def test_a_scheme_that_one_table_does_not_have_is_shown_as_such():
    one = table()
    fewer = table(schemes={"fp8": one.schemes["fp8"]}, routes={k: r for k, r in one.routes.items() if k[0] == "fp8"})
    changes = [c for c in diff(fewer, one) if c.after.kernel == "wide"]
    assert {c.scheme for c in changes} == {"w8a16"}
    assert not any(c.before.known for c in changes)
    lost = [c for c in diff(one, fewer) if c.before.kernel == "wide"]
    assert [c.loudness for c in lost] == ["lost"]


def test_devices_with_equal_changes_are_one_change():
    one = table()
    other = table(*(route("fp8", name, "reference") for name in EVERYWHERE))
    assert all(len({d.platform for d in change.devices}) >= 1 for change in diff(one, other))
    assert len([c for c in diff(one, other) if c.before.kernel == "wide" and c.after.kernel == "reference"]) == 2


def test_a_band_of_m_that_moves_is_named_with_its_ends():
    def banded(last):
        small = kernel("small", at_most("accepts.m.max", last), one_of("accepts.schemes", "fp8"))
        return table(route("fp8", "cuda", "small", "reference"), rows={"small": small})

    (change,) = diff(banded(64), banded(128), [(device("sm90", table()), device("sm90", table()))])
    assert said([change])[0][4] == ["m 65 to 128"]
    assert (change.before.kernel, change.after.kernel, change.problem.m) == ("reference", "small", 65)


def test_a_limit_of_one_detail_alone_is_the_whole_region():
    limit = OneOf("accepts.output", ("bf16", "f16"), at_least("accepts.n.min", 0).mark)
    row = table().kernels["wide"]
    other = table(rows={"wide": replace(row, accepts=(*row.accepts, limit))})
    region = {tuple(c[4]) for c in said(diff(table(), other)) if c[1] == ["sm80", "cuda:13.0", "gfx90a", "gfx942"]}
    assert region <= {("output f32",)}
    assert all("output f32" in text for c in said(diff(table(), other)) for text in c[4])


def test_a_detail_that_one_table_does_not_know_is_shown_as_such():
    one = table()
    fp8 = one.schemes["fp8"]
    fewer = table(schemes={**one.schemes, "fp8": replace(fp8, weight=replace(fp8.weight, scales=("f32",)))})
    changes = diff(fewer, one)
    assert changes
    assert not any(change.before.known for change in changes)
    assert {text for change in said(changes) for text in change[4] if "weight scale e8m0" not in text} == set()
    assert {change.loudness for change in diff(one, fewer)} == {"lost"}
