"""The matrix: exact regions, columns that stand for what they say, and the selection's own answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltable.errors import ProblemError
from kerneltable.model import Problem
from kerneltable.select import device, select
from kerneltable.select.matrix import Matrix, Row, matrix, rows_of
from kerneltable.table import load_table

TABLE = load_table(plugins=False)
NAMES = ("h100", "h200", "a100", "v100", "dgx-spark", "mi300x", "epyc-turin")
ROWS = rows_of(TABLE, [device(name, TABLE) for name in NAMES], unknown=True)
FOUND = matrix(TABLE, ROWS)


def row(name: str) -> Row:
    return next(row for row in ROWS if name in row.names)


def fits(boxes: tuple[dict, ...], problem: Problem) -> bool:
    """Whether the JSON boxes of a cell hold a problem; only sizes and what is no column."""
    return any(all(holds(problem, name, asked) for name, asked in box.items()) for box in boxes)


def holds(problem: Problem, name: str, asked: object) -> bool:
    if name == "m_unknown":
        return True
    if name in ("n", "k", "m"):
        size = getattr(problem, name)
        return any(in_span(size, span) for span in asked)  # type: ignore[attr-defined]
    if name == "bias":
        return ("yes" if problem.bias else "no") in asked  # type: ignore[operator]
    assert name == "weight_scale", name
    return problem.weight_scale in asked  # type: ignore[operator]


def in_span(size: int, span: dict) -> bool:
    return (
        span["min"] <= size <= span.get("max", size)
        and size % span.get("multiple_of", 1) == 0
        and all(size % number for number in span.get("not_multiple_of", ()))
    )


def test_devices_with_the_same_chip_share_a_row_and_others_do_not() -> None:
    assert row("h100") is row("h200")
    assert row("h100") is not row("a100")
    assert [one.device.platform for one in ROWS if one.names == ("unknown chip",)] == ["cuda", "rocm", "cpu"]


def test_every_scheme_has_a_column_and_every_granularity_is_in_one() -> None:
    assert {column.scheme for column in FOUND.columns} == set(TABLE.schemes)
    for name, scheme in TABLE.schemes.items():
        weights = {weight.split()[0] for column in FOUND.columns if column.scheme == name for weight in column.weights}
        assert weights - {"any"} == set(scheme.weight.granularities)


def test_columns_of_a_scheme_differ_in_some_answer() -> None:
    for scheme in TABLE.schemes:
        answers = [
            tuple(tuple((won.kernel, won.region) for won in cells[place]) for cells in FOUND.cells)
            for place, column in enumerate(FOUND.columns)
            if column.scheme == scheme
        ]
        assert len(set(answers)) == len(answers)


def test_the_example_of_a_region_gets_the_kernel_of_that_region() -> None:
    for one, cells in zip(FOUND.rows, FOUND.cells, strict=True):
        for cell in cells:
            for won in cell:
                assert select(TABLE, one.device, won.problem).kernel == won.kernel


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(range(len(ROWS))),
    st.sampled_from(range(len(FOUND.columns))),
)
def test_a_problem_lies_in_the_region_of_its_kernel_and_in_no_other(data: st.DataObject, r: int, c: int) -> None:
    size = st.one_of(st.integers(1, 300), st.integers(1, 80).map(lambda n: n * 128))
    like = FOUND.cells[r][c][0].problem
    n, k, m = (data.draw(size, label=name) for name in "nkm")
    problem = Problem(
        like.scheme, n=n, k=k, m=m, bias=data.draw(st.booleans()), weight_scale=like.weight_scale,
        weight_granularity=like.weight_granularity, weight_block=like.weight_block,
        input_granularity=like.input_granularity, input_scaling=like.input_scaling,
    )  # fmt: skip
    holding = [won.kernel for won in FOUND.cells[r][c] if fits(won.boxes, problem)]
    assert holding == [select(TABLE, ROWS[r].device, problem).kernel]


def test_one_scheme_can_be_asked_and_an_unknown_one_is_refused() -> None:
    assert {column.scheme for column in matrix(TABLE, ROWS[:1], schemes=["mxfp8"]).columns} == {"mxfp8"}
    with pytest.raises(ProblemError, match="unknown scheme 'mxfp9'"):
        matrix(TABLE, ROWS[:1], schemes=["mxfp9"])


def test_another_dtype_is_another_matrix() -> None:
    def v100(found: Matrix) -> set[str | None]:
        place = found.rows.index(row("v100"))
        return {won.kernel for cell in found.cells[place] for won in cell}

    assert "torch_mxfp8_emulation" in v100(FOUND)
    assert "torch_mxfp8_emulation" not in v100(matrix(TABLE, ROWS, input="f16", output="f16"))
