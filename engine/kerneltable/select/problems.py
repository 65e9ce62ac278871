"""A Problem made complete: the scheme's defaults filled in, and every detail held against the scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kerneltable.errors import ProblemError
from kerneltable.model import Operand, Problem, Scheme, Table
from kerneltable.model.predicates import LARGEST_SIZE
from kerneltable.names import hint

DTYPES = ("bf16", "f16", "f32")


def scheme_of(table: Table, name: str) -> Scheme:
    """The scheme of that name; ProblemError with the nearest name when the table has none."""
    scheme = table.schemes.get(name)
    if scheme is None:
        raise ProblemError(f"unknown scheme {_quoted(name)}; {hint(str(name), table.schemes)}")
    return scheme


def complete(scheme: Scheme, problem: Problem) -> Problem:
    """The problem with the scheme's defaults in place of what is None among its quantization details.

    m stays None when it is not known; weight_block stays None unless the weight has one scale a block;
    input_scaling is "none" when the input is not quantized.
    errors    ProblemError: another scheme's problem, a dtype outside bf16, f16 and f32, a size that is no whole number
              from 0 to 2^31 - 1, a detail that the scheme does not have
    """
    if problem.scheme != scheme.name:
        raise ProblemError(f"a problem of scheme {_quoted(problem.scheme)} cannot be completed by '{scheme.name}'")
    for name, size in (("n", problem.n), ("k", problem.k), ("m", problem.m)):
        _check_size(name, size)
    _one_of(scheme, "input dtype", problem.input, DTYPES)
    _one_of(scheme, "output dtype", problem.output, DTYPES)
    granularity = _weight_granularity(scheme, problem)
    quantized = _pick(scheme, "input_granularity", problem.input_granularity, scheme.input.granularities)
    done = Problem(
        problem.scheme,
        n=problem.n,
        k=problem.k,
        m=problem.m,
        input=problem.input,
        output=problem.output,
        bias=problem.bias,
        weight_granularity=granularity,
        weight_block=_weight_block(scheme, granularity, problem.weight_block),
        weight_scale=_pick(scheme, "weight_scale", problem.weight_scale, scheme.weight.scales),
        input_granularity=quantized,
        input_scaling=_input_scaling(scheme, quantized, problem.input_scaling),
        model=problem.model,
    )
    return problem if done == problem else done


def block_text(block: tuple[int, int]) -> str:
    """[rows, columns] of a scale block as the table writes it: "128x128"."""
    return f"{block[0]}x{block[1]}"


def _weight_granularity(scheme: Scheme, problem: Problem) -> str:
    if problem.weight_granularity is None and problem.weight_block is not None:
        return _pick(scheme, "weight_granularity", "block", scheme.weight.granularities)
    return _pick(scheme, "weight_granularity", problem.weight_granularity, scheme.weight.granularities)


def _weight_block(scheme: Scheme, granularity: str, block: Any) -> tuple[int, int] | None:
    weight: Operand = scheme.weight
    if granularity != "block":
        if block is not None:
            raise ProblemError(
                f"scheme '{scheme.name}': weight_block belongs to weight_granularity 'block'; found '{granularity}'; "
                "leave one of the two out"
            )
        return None
    if block is None:
        return weight.blocks[0]
    if not (len(block) == 2 and all(type(side) is int and 1 <= side <= LARGEST_SIZE for side in block)):
        raise ProblemError(
            f"scheme '{scheme.name}': weight_block must be two whole numbers of at least 1; found {_quoted(block)}"
        )
    if block not in weight.blocks and not weight.any_block:
        known = [block_text(known) for known in weight.blocks]
        _one_of(scheme, "weight_block", block_text(block), known)
    return (block[0], block[1])


def _input_scaling(scheme: Scheme, granularity: str, scaling: str | None) -> str:
    if granularity == "none":
        return _pick(scheme, "input_scaling", scaling, ("none",))
    return _pick(scheme, "input_scaling", scaling, scheme.input.scalings)


def _pick(scheme: Scheme, name: str, value: str | None, values: Sequence[str]) -> str:
    if value is None:
        return values[0] if values else "none"
    _one_of(scheme, name, value, values or ("none",))
    return value


def _one_of(scheme: Scheme, name: str, value: Any, values: Sequence[str]) -> None:
    if value not in values:
        wanted = f"must be one of {', '.join(values)}" if len(values) > 1 else f"must be {values[0]}"
        raise ProblemError(
            f"scheme '{scheme.name}' ({scheme.mark}): {name} {wanted}; found {_quoted(value)}; "
            f"{hint(str(value), values)}"
        )


def _check_size(name: str, size: Any) -> None:
    if size is None and name == "m":
        return
    if type(size) is not int or not 0 <= size <= LARGEST_SIZE:
        also = ", or None when it is not known" if name == "m" else ""
        raise ProblemError(f"{name} must be a whole number from 0 to {LARGEST_SIZE}{also}; found {_quoted(size)}")


def _quoted(value: Any) -> str:
    """A value from outside for a message: shortened, control characters escaped."""
    if type(value) is int and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
