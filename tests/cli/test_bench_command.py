"""`kerneltable bench`: what it times, how it reads its options, what it prints."""

import json
import math

import pytest

from kerneltable.cli import main
from kerneltable.cli.bench import parse_rows, parse_shapes, text_lines
from kerneltable.errors import ProblemError
from kerneltable.run.bench import SHAPES, Timing, geometric_mean
from kerneltable.run.clock import Spread, copies_of

SMALL = ["bench", "fp8_block_w8a8", "--shapes", "256x256", "--m", "1,3", "--kernel", "cpu_fp8"]
REPORT = {
    "scheme": "fp8_block_w8a8", "device": "x", "torch": "2", "date": "2026-11-21", "method": "graphs",
    "memory_bytes_per_s": 4e12, "product_operations_per_s": 8e14,
}  # fmt: skip


def timing(kernel, m, us, *, product=None, chosen=False, error=0.5):
    stage = None if product is None else Spread(product, product, product)
    return Timing(kernel, 4096, 7168, m, Spread(us, us, us), stage, error, chosen)


def test_every_kernel_and_the_peer_are_timed_and_checked(capsys):
    assert main([*SMALL, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["format"] == 1
    assert {(t["kernel"], t["m"]) for t in answer["timings"]} == {
        ("cpu_fp8", 1), ("cpu_fp8", 3), ("matmul_16bit", 1), ("matmul_16bit", 3),
    }  # fmt: skip
    for row in answer["timings"]:
        assert row["call_us"]["p10"] <= row["call_us"]["median"] <= row["call_us"]["p90"]
        assert row["chosen"] == (row["kernel"] == "cpu_fp8")
        assert row["memory_share"] > 0
        if row["kernel"] == "cpu_fp8":
            assert 0 <= row["error_over_bound"] <= 1


def test_csv_has_a_line_for_each_timing(capsys):
    assert main([*SMALL, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kernel,n,k,m,call_us")
    assert len(lines) == 5
    assert {len(line.split(",")) for line in lines} == {len(lines[0].split(","))}


def test_an_unknown_scheme_is_refused_with_the_known_ones(capsys):
    assert main(["bench", "fp9"]) == 2
    assert "fp8_block_w8a8" in capsys.readouterr().err


def test_models_and_sizes_are_read_each_once():
    assert parse_shapes("qwen3-32b,128x256,10240x5120") == [(10240, 5120), (5120, 25600), (128, 256)]
    assert len(parse_shapes("all")) == sum(map(len, SHAPES.values()))


@pytest.mark.parametrize("text", ["gpt", "128", "0x128", "12x", "axb", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ProblemError, match="--shapes"):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["0", "a", "1,,2", "-1"])
def test_what_is_no_number_of_rows_is_refused(text):
    with pytest.raises(ProblemError, match="--m"):
        parse_rows(text)


def test_the_choice_carries_a_star_and_products_stand_below():
    lines = text_lines([timing("a", 1, 10.0, product=8.0, chosen=True), timing("b", 1, 20.0)], REPORT, None)
    assert any(line.strip().startswith("a ") and line.endswith("10.0*") for line in lines)
    assert any("product alone" in line and line.endswith("8.0") for line in lines)


def test_relative_speed_compares_products_where_both_have_them():
    plan = [timing("mine", 1, 10.0, product=5.0, chosen=True), timing("mine", 32, 10.0, product=4.0, chosen=True)]
    peer = [timing("peer", 1, 20.0, product=10.0), timing("peer", 32, 20.0, product=8.0)]
    lines = text_lines(plan + peer, REPORT, "peer")
    assert [line.split("mean ")[1].split(",")[0] for line in lines if "geometric mean" in line] == ["2.00", "2.00"]
    assert any("did not run" in line for line in text_lines(plan, REPORT, "peer"))


def test_copies_outgrow_the_caches_but_are_at_least_two():
    assert copies_of(2**30) == 2
    assert copies_of(16 * 2**20) == 16
    assert copies_of(1) == 16
    assert math.isclose(geometric_mean([1.0, 4.0]), 2.0)
