"""Each predicate form, each key, at, below and above its limit."""

from __future__ import annotations

from typing import Any

import pytest
from handmade import at, at_least, at_most, multiple_of, needs, one_of, table
from hypothesis import given
from hypothesis import strategies as st

from kerneltable.errors import KernelTableError
from kerneltable.model import Device, OneOf, Predicate, Problem, Refusal
from kerneltable.select import complete, device
from kerneltable.select.predicates import (
    DEVICE_LEAVES,
    FACT_OF,
    NEED_LEAVES,
    PROBLEM_LEAVES,
    check,
    describe_chip,
    device_facts,
    problem_facts,
)

TABLE = table()
GENOA = Device("cpu", "x86-64-v4")


def held(predicate: Predicate, on: Device = GENOA, **problem: Any) -> Refusal | None:
    asked = complete(TABLE.schemes["fp8"], Problem("fp8", **{"n": 256, "k": 256, **problem}))
    return check("x", predicate, {**device_facts(TABLE, on), **problem_facts(asked)})


def found(refusal: Refusal | None) -> tuple[str, str]:
    assert refusal is not None
    return refusal.wanted, refusal.found


def test_every_key_reads_a_fact_that_a_device_or_a_problem_has() -> None:
    asked = complete(TABLE.schemes["fp8"], Problem("fp8", n=1, k=1))
    facts = {**device_facts(TABLE, GENOA), **problem_facts(asked)}
    assert set(FACT_OF.values()) == set(facts) - {"assume_all", "needs", "refused", "kinds", "few layouts"}


def test_when_knows_every_key_that_rows_know() -> None:
    leaves = {*DEVICE_LEAVES, *NEED_LEAVES, *PROBLEM_LEAVES}
    assert {key.partition(".")[2] for key in FACT_OF if key.startswith("when.")} == leaves
    assert {key.partition(".")[2] for key in FACT_OF if not key.startswith("when.")} == leaves


def test_a_key_that_no_fact_answers_is_an_error_that_names_it() -> None:
    with pytest.raises(KernelTableError, match=r"hand\.yaml:7:5: .*'accepts\.colour'"):
        held(one_of("accepts.colour", "red", line=7))


def test_a_refusal_carries_kernel_key_and_place() -> None:
    refusal = held(one_of("accepts.input", "f16", line=9))
    assert refusal == Refusal("x", "accepts.input", "f16", "bf16", at(9))
    assert str(refusal) == "accepts.input: wanted f16, found bf16 (hand.yaml:9:5)"


@pytest.mark.parametrize(
    ("key", "fits", "refuses", "seen"),
    [
        ("accepts.schemes", "fp8", "mxfp8", "fp8"),
        ("accepts.weight_granularity", "block", "tensor", "block"),
        ("accepts.weight_block", "128x128", "1x32", "128x128"),
        ("accepts.weight_scale", "f32", "e8m0", "f32"),
        ("accepts.input_granularity", "block", "token", "block"),
        ("accepts.input_scaling", "dynamic", "static", "dynamic"),
        ("accepts.input", "bf16", "f16", "bf16"),
        ("accepts.output", "bf16", "f32", "bf16"),
    ],
)
def test_one_of_accepts_a_listed_value_and_refuses_any_other(key: str, fits: str, refuses: str, seen: str) -> None:
    assert held(one_of(key, "something", fits)) is None
    assert found(held(one_of(key, refuses))) == (refuses, seen)
    assert found(held(one_of(key, refuses, "something"))) == (f"one of {refuses}, something", seen)


def test_bias_is_accepted_and_refused_in_words() -> None:
    assert held(one_of("accepts.bias", False), bias=False) is None
    assert held(one_of("accepts.bias", True, False), bias=True) is None
    assert found(held(one_of("accepts.bias", False), bias=True)) == ("no bias", "bias")
    assert found(held(one_of("accepts.bias", True))) == ("bias", "no bias")


def test_the_block_is_looked_at_only_when_the_weight_has_blocks() -> None:
    assert held(one_of("accepts.weight_block", "128x128"), weight_granularity="tensor") is None
    assert found(held(one_of("accepts.weight_block", "128x128"), weight_block=(64, 128))) == ("128x128", "64x128")


@pytest.mark.parametrize("size", ["m", "n", "k"])
def test_size_limits_include_their_ends(size: str) -> None:
    low, high = at_least(f"accepts.{size}.min", 64), at_most(f"accepts.{size}.max", 96)
    assert [held(low, **{size: value}) is None for value in (63, 64, 65)] == [False, True, True]
    assert [held(high, **{size: value}) is None for value in (95, 96, 97)] == [True, True, False]
    assert found(held(low, **{size: 63})) == ("at least 64", "63")
    assert found(held(high, **{size: 97})) == ("at most 96", "97")


@pytest.mark.parametrize("size", ["m", "n", "k"])
def test_a_multiple_is_accepted_and_its_neighbours_are_refused(size: str) -> None:
    predicate = multiple_of(f"accepts.{size}.multiple_of", 128)
    assert [held(predicate, **{size: value}) is None for value in (0, 127, 128, 129, 256)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert found(held(predicate, **{size: 576})) == ("multiple of 128", "576")


@pytest.mark.parametrize(
    "predicate",
    [at_least("accepts.m.min", 0), at_most("accepts.m.max", 2**31), multiple_of("accepts.m.multiple_of", 1)],
)
def test_an_unknown_m_fits_no_predicate_on_m(predicate: Predicate) -> None:
    assert held(predicate, m=5) is None
    assert found(held(predicate, m=None))[1] == "unknown"


@given(value=st.integers(0, 2**31 - 1), low=st.integers(0, 2**31 - 1), divisor=st.integers(1, 2**20))
def test_sizes_are_held_exactly_as_the_words_say(value: int, low: int, divisor: int) -> None:
    assert (held(at_least("accepts.n.min", low), n=value) is None) == (value >= low)
    assert (held(at_most("accepts.n.max", low), n=value) is None) == (value <= low)
    assert (held(multiple_of("accepts.n.multiple_of", divisor), n=value) is None) == (value % divisor == 0)


def test_capabilities_compare_as_number_tuples() -> None:
    spark, a100, mi300 = (device(name, TABLE) for name in ("dgx-spark", "a100", "mi300x"))
    assert held(at_least("runs_on.capability.min", (8, 9)), spark) is None
    assert held(at_most("runs_on.capability.max", (12, 1)), spark) is None
    assert found(held(at_most("runs_on.capability.max", (12, 0)), spark)) == ("at most 12.0", "12.1 (sm121)")
    assert found(held(at_least("runs_on.capability.min", (8, 9)), a100)) == ("at least 8.9", "8.0 (sm80)")
    assert found(held(at_least("runs_on.capability.min", (0, 0)), mi300)) == ("at least 0.0", "no capability (gfx942)")


def test_capability_8_10_is_above_8_9() -> None:
    assert held(at_least("runs_on.capability.min", (8, 9)), Device("cuda", None, capability=(8, 10))) is None
    assert held(at_most("runs_on.capability.max", (8, 9)), Device("cuda", None, capability=(8, 10))) is not None


@pytest.mark.parametrize(
    ("predicate", "fits", "refuses", "words"),
    [
        (one_of("runs_on.architectures", "sm90", "sm80"), "h200", "rtx-4090", ("one of sm90, sm80", "sm89")),
        (one_of("runs_on.families", "sm12x"), "dgx-spark", "h200", ("sm12x", "sm90")),
        (one_of("runs_on.fp8", "fn"), "h200", "mi300x", ("fn", "fnuz")),
        (one_of("runs_on.fp8", "fn"), "h200", "a100", ("fn", "none on sm80")),
        (needs("runs_on.features", "mma_fp8"), "rtx-4090", "a100", ("mma_fp8", "absent on sm80")),
    ],
)
def test_chip_predicates_accept_and_refuse(
    predicate: Predicate, fits: str, refuses: str, words: tuple[str, str]
) -> None:
    assert held(predicate, device(fits, TABLE)) is None
    assert found(held(predicate, device(refuses, TABLE))) == words


def test_an_unknown_chip_has_no_features_and_no_architecture_but_a_bounded_family() -> None:
    future = device("cuda:12.7", TABLE)
    assert found(held(needs("runs_on.features", "mma_fp8"), future)) == ("mma_fp8", "unknown (unknown capability 12.7)")
    assert found(held(one_of("runs_on.architectures", "sm120"), future)) == ("sm120", "unknown capability 12.7")
    assert held(one_of("runs_on.families", "sm12x"), future) is None
    assert found(held(one_of("runs_on.families", "sm12x"), device("cuda:13.0", TABLE)))[1] == "unknown capability 13.0"
    assert (
        found(held(at_most("runs_on.capability.max", (12, 9)), device("cuda:13.0", TABLE)))[1] == "13.0 (unknown chip)"
    )


def test_a_chip_without_any_fact_is_named_so() -> None:
    nothing = Device("tpu", None)
    assert describe_chip(TABLE, nothing) == "an unknown chip"
    assert found(held(one_of("runs_on.families", "sm9x"), nothing)) == ("sm9x", "an unknown chip")
    assert found(held(one_of("runs_on.fp8", "fn"), nothing)) == ("fn", "none on an unknown chip")


def test_the_facts_of_a_chip_come_from_the_table_not_from_the_device() -> None:
    liar = Device("cuda", "sm80", capability=(12, 0))
    assert held(at_least("runs_on.capability.min", (8, 9)), liar) is not None


@pytest.mark.parametrize(
    ("version", "spec", "fits"),
    [
        ("2.11.0+cu130", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("2.10", ">=2.10.0,<3", True),
        ("3.0.0", ">=2.10,<3", False),
        ("2.11.0", "==2.11", True),
        ("2.11.0", "!=2.11", False),
        ("2.11.1", ">2.11", True),
        ("2.11", "<=2.11.0", True),
        ("unknown", ">=0", False),
        ("2.11", "~=2.11", False),
        (None, ">=99", True),
        ("0.0.1", None, True),
    ],
)
def test_a_package_is_accepted_in_its_version_range_only(version: str | None, spec: str | None, fits: bool) -> None:
    here = Device("cpu", "x86-64-v4", packages={"Some_Package": version})
    refusal = held(needs("needs.packages", "some-package", spec), here)
    assert (refusal is None) == fits
    if refusal is not None:
        assert found(refusal) == (f"package some-package {spec}", version)


def test_a_package_that_is_not_there_is_refused() -> None:
    assert found(held(needs("needs.packages", "deep_gemm"))) == ("package deep_gemm", "not installed")
    assert found(held(needs("needs.packages", "deep_gemm", ">=2"))) == ("package deep_gemm >=2", "not installed")


def test_an_op_is_accepted_when_registered_and_refused_otherwise() -> None:
    wanted = needs("needs.ops", "_C::gemm")
    assert held(wanted, Device("cpu", "x86-64-v4", ops=frozenset({"_C::gemm"}))) is None
    assert found(held(wanted)) == ("op _C::gemm", "not registered")


def test_assuming_all_covers_packages_and_ops_but_no_feature() -> None:
    everything = Device("cpu", "x86-64-v4", assume_all=True)
    assert held(needs("needs.packages", "deep_gemm", ">=2"), everything) is None
    assert held(needs("needs.ops", "_C::gemm"), everything) is None
    assert held(needs("runs_on.features", "mma_fp8"), everything) is not None


def test_a_device_fact_is_not_mistaken_for_part_of_another() -> None:
    assert held(one_of("runs_on.families", "sm1"), device("dgx-spark", TABLE)) is not None
    assert held(one_of("runs_on.architectures", "sm12"), device("dgx-spark", TABLE)) is not None
    assert held(OneOf("accepts.schemes", ("fp",), at(1))) is not None
