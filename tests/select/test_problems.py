"""Problems: defaults filled in, and every detail held against the scheme."""

from __future__ import annotations

from typing import Any

import pytest
from handmade import fp8, w8a16

from kerneltable.errors import ProblemError
from kerneltable.model import Problem
from kerneltable.select import complete


def fp8_problem(**values: Any) -> Problem:
    return Problem("fp8", **{"n": 256, "k": 256, **values})


def details(problem: Problem) -> tuple[Any, ...]:
    return (
        problem.weight_granularity, problem.weight_block, problem.weight_scale,
        problem.input_granularity, problem.input_scaling,
    )  # fmt: skip


def test_defaults_are_the_first_of_the_scheme() -> None:
    assert details(complete(fp8(), fp8_problem())) == ("block", (128, 128), "f32", "block", "dynamic")
    assert details(complete(w8a16(), Problem("w8a16", n=1, k=1))) == ("channel", None, "f32", "none", "none")


def test_what_is_said_is_kept() -> None:
    said = fp8_problem(
        weight_granularity="tensor", weight_scale="e8m0", input_granularity="block", input_scaling="static"
    )
    assert details(complete(fp8(), said)) == ("tensor", None, "e8m0", "block", "static")


def test_a_complete_problem_is_returned_as_it_is() -> None:
    once = complete(fp8(), fp8_problem(m=7))
    assert complete(fp8(), once) is once


def test_a_block_alone_means_block_granularity() -> None:
    assert details(complete(w8a16(), Problem("w8a16", n=1, k=1, weight_block=(1, 32))))[:2] == ("block", (1, 32))


def test_any_block_is_taken_where_the_scheme_says_so_and_only_known_ones_elsewhere() -> None:
    assert details(complete(fp8(), fp8_problem(weight_block=(64, 32))))[1] == (64, 32)
    with pytest.raises(ProblemError, match="weight_block must be 1x32; found '64x32'"):
        complete(w8a16(), Problem("w8a16", n=1, k=1, weight_block=(64, 32)))


@pytest.mark.parametrize("block", [(0, 128), (128,), (128, 128, 1), (True, 128), (-1, 1), (1.5, 2)])
def test_a_block_that_is_no_pair_of_sizes_is_refused(block: Any) -> None:
    with pytest.raises(ProblemError, match="weight_block must be two whole numbers of at least 1"):
        complete(fp8(), fp8_problem(weight_block=block))


def test_a_block_with_another_granularity_is_refused() -> None:
    with pytest.raises(ProblemError, match="weight_block belongs to weight_granularity 'block'; found 'tensor'"):
        complete(fp8(), fp8_problem(weight_granularity="tensor", weight_block=(128, 128)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"input": "fp16"}, "input dtype must be one of bf16, f16, f32; found 'fp16'; did you mean 'f16'"),
        ({"output": "e4m3"}, "output dtype must be one of bf16, f16, f32; found 'e4m3'"),
        (
            {"weight_granularity": "blocks"},
            "weight_granularity must be one of block, tensor; found 'blocks'; did you mean",
        ),
        ({"weight_scale": "bf16"}, "weight_scale must be one of f32, e8m0; found 'bf16'"),
        ({"input_granularity": "tokens"}, "input_granularity must be block; found 'tokens'"),
        ({"input_scaling": "sometimes"}, "input_scaling must be one of dynamic, static; found 'sometimes'"),
    ],
)
def test_a_detail_that_the_scheme_does_not_have_is_refused_with_what_it_has(values: Any, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        complete(fp8(), fp8_problem(**values))
    assert words in str(caught.value)
    assert "hand.yaml:10:5" in str(caught.value)


def test_an_input_that_is_not_quantized_has_no_scaling() -> None:
    with pytest.raises(ProblemError, match="input_scaling must be none; found 'dynamic'"):
        complete(w8a16(), Problem("w8a16", n=1, k=1, input_scaling="dynamic"))
    assert complete(w8a16(), Problem("w8a16", n=1, k=1, input_scaling="none")).input_scaling == "none"


@pytest.mark.parametrize("name", ["m", "n", "k"])
@pytest.mark.parametrize("size", [-1, 2**31, 1.0, True, "8", 10**50])
def test_a_size_that_is_no_size_is_refused(name: str, size: Any) -> None:
    with pytest.raises(ProblemError, match=f"^{name} must be a whole number from 0 to 2147483647"):
        complete(fp8(), fp8_problem(**{name: size}))


@pytest.mark.parametrize("size", [0, 1, 2**31 - 1])
def test_every_size_in_range_is_taken(size: int) -> None:
    assert complete(fp8(), fp8_problem(m=size, n=size, k=size)).n == size


def test_only_m_may_be_unknown() -> None:
    assert complete(fp8(), fp8_problem(m=None)).m is None
    with pytest.raises(ProblemError, match="n must be a whole number from 0 to 2147483647; found None"):
        complete(fp8(), fp8_problem(n=None))


def test_a_problem_of_another_scheme_is_refused() -> None:
    with pytest.raises(ProblemError, match="a problem of scheme 'w8a16' cannot be completed by 'fp8'"):
        complete(fp8(), Problem("w8a16", n=1, k=1))


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ProblemError) as caught:
        complete(fp8(), fp8_problem(input="x" * 10_000))
    assert len(str(caught.value)) < 300
