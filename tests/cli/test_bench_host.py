"""`kerneltable bench --host`: host times of eager calls beside nn.Linear."""

import json
import math
from functools import partial

import pytest
import torch

from kerneltable.cli import main
from kerneltable.cli.bench_host import csv_lines, text_lines
from kerneltable.kernels import cpu_fp8
from kerneltable.run.timing import host_time
from kerneltable.run.timing.clock import Spread
from kerneltable.run.timing.host_time import LINEAR, HostTime, ratio

SMALL = ["bench", "fp8_block_w8a8", "--shapes", "256x256", "--m", "1,2", "--host", "--kernel", "cpu_fp8"]
HEAD = {
    "scheme": "s", "weight_granularity": "channel", "weight_block": None, "input_granularity": "none",
    "input_scaling": "none", "device": "d", "torch": "2",
}  # fmt: skip


def timing(kernel, m, us, **more):
    return HostTime(kernel, 256, 256, m, us and Spread(us, us, us), **more)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(host_time, "CALLS", 2)
    monkeypatch.setattr(host_time, "BUDGET_S", 0.0)


def test_a_layer_and_the_unquantized_one_are_timed_at_every_m(capsys):
    assert main([*SMALL, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["format"] == 1
    assert [(t["kernel"], t["m"]) for t in answer["host"]] == [
        (LINEAR, 1), (LINEAR, 2), ("cpu_fp8", 1), ("cpu_fp8", 2),
    ]  # fmt: skip
    beside = {t["m"]: t["host_us"]["median"] for t in answer["host"] if t["kernel"] == LINEAR}
    for row in answer["host"]:
        assert 0 < row["host_us"]["p10"] <= row["host_us"]["median"] <= row["host_us"]["p90"]
        assert row["of_linear"] == pytest.approx(row["host_us"]["median"] / beside[row["m"]])
        assert row["chosen"] == (row["kernel"] == "cpu_fp8")


def test_a_kernel_of_another_platform_is_left_out_with_its_refusal(capsys):
    assert main([*SMALL, "--kernel", "hopper_fp8_block"]) == 0
    assert "left out: hopper_fp8_block: runs_on: wanted cuda" in capsys.readouterr().out


def test_a_kernel_that_fails_is_left_out_and_told_by_the_exit_code(capsys, monkeypatch):
    def broken(self, *arguments, **tensors):
        raise RuntimeError("broken here")

    monkeypatch.setattr(cpu_fp8.Kernel, "__init__", broken)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "left out: cpu_fp8: " in out
    assert "broken here" in out


def test_csv_has_a_line_for_each_timing(capsys):
    assert main([*SMALL, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kernel,n,k,m,host_us")
    assert len(lines) == 5
    assert {len(line.split(",")) for line in lines} == {len(lines[0].split(","))}


def test_the_text_shows_each_time_relative_to_the_unquantized_layer():
    timings = [timing(LINEAR, 1, 10.0), timing("a", 1, 12.5, chosen=True), timing("b", 1, None, fault="no")]
    lines = list(text_lines(timings, (1,), HEAD))
    assert lines[0].startswith("s (scales: weight per channel, input not quantized) on d, torch 2;")
    assert any(line.split() == ["a", "12.5", "(1.25)*"] for line in lines)
    assert any(line.split() == ["b", "-"] for line in lines)
    assert lines[-1] == "left out: b: no"


def test_without_the_unquantized_layer_there_is_no_ratio():
    alone = timing("a", 1, 12.5)
    assert math.isnan(ratio(alone, [alone, timing(LINEAR, 3, 10.0)]))


def test_a_spread_counts_calls_and_not_loops():
    calls = []
    run = host_time.loops(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == host_time.WARM_UP
    assert len(run()) == host_time.FEWEST
    assert len(calls) == host_time.WARM_UP + host_time.FEWEST * 2


def test_layers_take_turns_so_that_a_busy_processor_slows_all_of_them(monkeypatch):
    order = []
    found, _ = host_time.take_turns(
        [partial(host_time.loops, partial(order.append, name), torch.device("cpu")) for name in "ab"], 3
    )
    timed = "".join(order).replace("a" * host_time.WARM_UP + "b" * host_time.WARM_UP, "")
    a, b = ("".join([name] * 2 * host_time.FEWEST) for name in "ab")
    assert timed == a + b + b + a + a + b  # every other turn backwards
    assert found.low <= found.median <= found.high


@pytest.mark.parametrize("lines", [lambda timings: text_lines(timings, (1, 3), HEAD), csv_lines])
def test_a_line_is_there_before_the_next_kernel_is_timed(lines):
    timed = []

    def timings():
        for kernel in (LINEAR, "a", "b"):
            for m in (1, 3):
                timed.append(kernel)
                yield timing(kernel, m, 10.0)

    told = [(line.split(",")[0].split(), set(timed)) for line in lines(timings())]
    before = {words[0]: done for words, done in told if words and words[0] in (LINEAR, "a", "b")}
    assert before == {LINEAR: {LINEAR}, "a": {LINEAR, "a"}, "b": {LINEAR, "a", "b"}}


def test_rows_asked_for_twice_are_timed_once(capsys):
    assert main([part if part != "1,2" else "2,1,2" for part in SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-2:] == ["m=2", "m=1"]
    assert [line.split()[0] for line in lines[3:5]] == [LINEAR, "cpu_fp8"]


def test_without_shapes_one_small_weight_is_timed(capsys):
    assert main(["bench", "fp8_block_w8a8", "--host", "--kernel", "cpu_fp8", "--m", "1", "--format", "json"]) == 0
    assert {(one["n"], one["k"]) for one in json.loads(capsys.readouterr().out)["host"]} == {(1024, 1024)}
