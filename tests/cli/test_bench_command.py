"""`kerneltable bench`: what it times, how it reads its options, what it prints."""

import json
import math
import sys
from dataclasses import replace

import pytest

from kerneltable.cli import main
from kerneltable.cli.bench import parse_rows, parse_shapes, shares
from kerneltable.cli.bench_text import text_lines
from kerneltable.errors import ProblemError
from kerneltable.kernels import reference
from kerneltable.model import Problem
from kerneltable.run.timing.bench import SHAPES, Timing, geometric_mean, kernels_of, left_out
from kerneltable.run.timing.clock import Spread, copies_of
from kerneltable.select import device
from kerneltable.table import load_table

SMALL = ["bench", "fp8_block_w8a8", "--shapes", "256x256", "--m", "1,2", "--kernel", "cpu_fp8"]
REPORT = {
    "scheme": "fp8_block_w8a8", "weight_granularity": "block", "weight_block": "128x128", "input_granularity": "block",
    "input_scaling": "dynamic", "device": "x", "torch": "2", "date": "2026-11-21", "method": "graphs",
    "memory_bytes_per_s": 4e12, "product_operations_per_s": 8e14,
}  # fmt: skip


def timing(kernel, m, us, *, product=None, chosen=False, error=0.5):
    stage = None if product is None else Spread(product, product, product)
    return Timing(kernel, 4096, 7168, m, Spread(us, us, us), stage, error, chosen)


def test_every_kernel_and_the_peer_are_timed_and_checked(capsys):
    assert main([*SMALL, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["format"] == 1
    assert [(t["kernel"], t["m"]) for t in answer["timings"]] == [
        ("cpu_fp8", 1), ("cpu_fp8", 2), ("matmul_16bit", 1), ("matmul_16bit", 2),
    ]  # fmt: skip
    for row in answer["timings"]:
        assert row["call_us"]["p10"] <= row["call_us"]["median"] <= row["call_us"]["p90"]
        assert row["chosen"] == (row["kernel"] == "cpu_fp8")
        assert row["memory_share"] > 0
        if row["kernel"] == "cpu_fp8":
            assert 0 <= row["error_over_bound"] <= 1


def test_a_run_to_the_end_is_complete_in_the_file_and_on_stdout(tmp_path, capsys):
    kept = tmp_path / "kept.json"
    assert main([*SMALL, "--format", "json", "--out", str(kept)]) == 0
    answer = json.loads(kept.read_text())
    assert answer["complete"]
    assert answer == json.loads(capsys.readouterr().out)


def test_a_run_that_is_ended_early_leaves_the_sizes_that_it_was_through_with(tmp_path, monkeypatch):
    kept, seen = tmp_path / "kept.json", []

    def bench_size(bench, n, k, *_):
        seen.append(json.loads(kept.read_text()))
        if n == 300:
            raise KeyboardInterrupt
        return [replace(timing("cpu_fp8", 1, 10.0), n=n, k=k)]

    monkeypatch.setattr("kerneltable.run.timing.bench.bench_size", bench_size)
    shapes = "100x64,200x64,300x64"
    asked = ["bench", "fp8_block_w8a8", "--shapes", shapes, "--m", "1,2", "--kernel", "cpu_fp8", "-o", str(kept)]
    assert main(asked) == 130
    answer = json.loads(kept.read_text())
    assert [one["n"] for one in answer["timings"]] == [100, 200]
    assert {one["memory_share"] for one in answer["timings"]} == {None}
    assert not answer["complete"]
    assert [len(one["timings"]) for one in seen] == [0, 1, 2]


def test_csv_has_a_line_for_each_timing(capsys):
    assert main([*SMALL, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kernel,n,k,m,call_us")
    assert len(lines) == 5
    assert {len(line.split(",")) for line in lines} == {len(lines[0].split(","))}


def test_an_unknown_scheme_is_refused_with_the_known_ones(capsys):
    assert main(["bench", "fp9"]) == 2
    assert "fp8_block_w8a8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kernel", "cpu_fp9"], "there is no kernel 'cpu_fp9'; did you mean 'cpu_fp8'?"),
        (["--against", "cpu_fp9"], "there is no kernel 'cpu_fp9'; did you mean 'cpu_fp8'?"),
        (["--against", "matmul_16bits"], "did you mean 'matmul_16bit'?"),
        (["--against", "deepgemm_fp8_block"], "--against deepgemm_fp8_block: it is not timed here: it is in no route"),
        (["--kernel", "cpu_fp8", "--against", "reference"], "--kernel leaves it out; name it there too"),
        (["--shapes", "600000x600000"], "--shapes 600000x600000: at m=1 wanted at least 2,682 GiB"),
        (["--shapes", "2000000000x2000000000"], "--shapes 2000000000x2000000000: at m=1 wanted at least"),
        (["--shapes", "64x64", "--m", "2000000000"], "--shapes 64x64: at m=2000000000 wanted at least 954 GiB"),
        (["--plot", "/nonexistent/a.png"], "--plot: /nonexistent/a.png cannot be written: there is no folder"),
        (["--out", "/nonexistent/a.json"], "kerneltable: /nonexistent/a.json: No such file or directory"),
        (["--out", "."], "--out .: wanted a file; found a folder; name a file in it"),
        (["--out", "/"], "--out /: wanted a file; found a folder; name a file in it"),
        (["--host", "--plot", "a.png"], "bench --plot: --host has no use for it"),
        (["--host", "--out", "a.json"], "bench --out: --host has no use for it"),
        (["--host", "--against", "others"], "bench --against: --host has no use for it"),
        (["--host", "--kernel", "cpu_fp9"], "did you mean 'cpu_fp8'?"),
        (["--host", "--shapes", "600000x600000"], "--shapes 600000x600000: at m=64 wanted at least"),
    ],
)
def test_what_cannot_be_timed_is_said_in_one_line_before_anything_is(capsys, monkeypatch, arguments, text):
    monkeypatch.setattr("kerneltable.run.timing.room.memory_of", lambda where: 64 << 30)
    monkeypatch.setattr("kerneltable.run.timing.bench.bench_size", None)
    monkeypatch.setattr("kerneltable.run.timing.host_time.host_times", None)
    rows = [] if {"--host", "--m"} & set(arguments) else ["--m", "1"]
    assert main(["bench", "mxfp8", *rows, *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert text in printed.err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_timed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("kerneltable.run.timing.bench.bench_size", None)
    assert main([*SMALL, "--plot", "a.png"]) == 2
    assert "--plot needs matplotlib: pip install 'kerneltable[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("host", [[], ["--host"]])
def test_tensors_that_torch_cannot_make_are_said_in_one_line(capsys, monkeypatch, host):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0.\nDefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("torch.randn", full)
    assert main([*SMALL, *host]) == 2
    printed = capsys.readouterr()
    assert printed.out == ("" if not host else printed.out)
    assert printed.err.count("\n") == 1
    assert "--shapes 256x256: its random tensors cannot be made on cpu: RuntimeError: [enforce fail" in printed.err


def test_models_and_sizes_are_read_each_once():
    assert parse_shapes("qwen3-32b,128x256,10240x5120") == [(10240, 5120), (5120, 25600), (128, 256)]
    assert len(parse_shapes("all")) == sum(map(len, SHAPES.values()))


@pytest.mark.parametrize("text", ["gpt", "128", "0x128", "12x", "axb", "", "2147483648x1", "²x1", "1x99999999999999"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ProblemError, match="--shapes"):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["0", "a", "1,,2", "-1", "2147483648", "²"])
def test_what_is_no_number_of_rows_is_refused(text):
    with pytest.raises(ProblemError, match="--m"):
        parse_rows(text)


def test_the_choice_carries_a_star_and_products_stand_below():
    lines = text_lines([timing("a", 1, 10.0, product=8.0, chosen=True), timing("b", 1, 20.0)], REPORT)
    assert lines[0].startswith("fp8_block_w8a8 (scales: weight per 128x128, input per block) on x, torch 2,")
    assert any(line.strip().startswith("a ") and line.endswith("10.0*") for line in lines)
    assert any("product alone" in line and line.endswith("8.0") for line in lines)


def test_relative_speed_compares_products_where_both_have_them():
    plan = [timing("mine", 1, 10.0, product=5.0, chosen=True), timing("mine", 32, 10.0, product=4.0, chosen=True)]
    peer = [timing("peer", 1, 20.0, product=10.0), timing("peer", 32, 20.0, product=8.0)]
    lines = text_lines(plan + peer, REPORT, ["peer"])
    assert [line.split("mean ")[1].split(",")[0] for line in lines if "geometric mean" in line] == ["2.00"] * 3
    assert any("did not run" in line for line in text_lines(plan, REPORT, ["peer"]))


def test_a_summary_names_the_least_and_the_most_cell_and_says_no_band_twice():
    plan = [timing("mine", m, 10.0, chosen=True) for m in (1, 16, 128)]
    lines = text_lines(plan + [timing("peer", m, 10.0 * m) for m in (1, 16, 128)], REPORT, ["peer"])
    told = [line.split()[:4] for line in lines if "geometric mean" in line]
    assert told == [["m", "1", "geometric", "mean"], ["m", "2", "to", "64"], ["m", "1", "to", "64"],
                    ["m", "65", "to", "256"], ["m", "from", "1", "geometric"]]  # fmt: skip
    assert lines[-1].endswith("least 1.00 (4096 x 7168, m=1), most 128.00 (4096 x 7168, m=128), 3 sizes")


def test_others_are_the_fastest_kernels_that_the_table_does_not_choose_cell_by_cell():
    plan = [timing("mine", 1, 10.0, chosen=True), timing("mine", 8, 10.0, chosen=True)]
    peers = [timing("a", 1, 20.0), timing("a", 8, 40.0), timing("b", 1, 30.0), timing("b", 8, 30.0)]
    lines = text_lines([*plan, *peers, timing("matmul_16bit", 1, 1.0)], REPORT, ["others"])
    assert "least 2.00 (4096 x 7168, m=1), most 3.00 (4096 x 7168, m=8), 2 sizes" in lines[-1]
    assert any("did not run" in line for line in text_lines(plan, REPORT, ["others"]))


def test_stages_and_shares_of_the_ceilings_stand_below_a_kernel():
    stage = Spread(2.0, 2.0, 2.0)
    one = replace(timing("a", 1, 10.0, product=8.0), quantizer=stage, fp8=True)
    lines = text_lines([one], REPORT, (), lambda t: shares(t, REPORT))
    assert [line.split()[-1] for line in lines if "quantizer alone" in line] == ["2.0"]
    memory = (4096 * 7168 + 7168 + 2 * 4096) / 8e-6 / 4e12
    assert [line.split()[-2:] for line in lines if "  of the ceiling" in line] == [[f"{100 * memory:.0f}%", "m"]]
    many = replace(one, m=8192, product=Spread(1000.0, 1000.0, 1000.0))
    product = 2 * 8192 * 4096 * 7168 / 1e-3
    faster = {**REPORT, "fp8_product_operations_per_s": 16e14}
    assert math.isclose(shares(many, REPORT)[1], product / 8e14)
    assert math.isclose(shares(many, faster)[1], product / 16e14)
    assert math.isclose(shares(replace(many, fp8=False), faster)[1], product / 8e14)


def test_a_byte_of_scales_for_32_codes_counts_as_bytes_of_the_weight():
    report = {**REPORT, "scheme": "mxfp8"}
    codes, beside = 4096 * 7168, 2 * (7168 + 4096)
    assert math.isclose(shares(timing("a", 1, 10.0), report)[0], (codes * 33 / 32 + beside) / 10e-6 / 4e12)
    assert math.isclose(shares(timing("matmul_16bit", 1, 10.0), report)[0], (2 * codes + beside) / 10e-6 / 4e12)


def test_the_unquantized_peer_reads_wide_weights():
    peer = timing("matmul_16bit", 1, 10.0)
    assert math.isclose(shares(peer, REPORT)[0], 2 * (4096 * 7168 + 7168 + 4096) / 10e-6 / 4e12)


def test_kernels_that_cannot_run_here_are_named_with_their_reason(capsys):
    assert main(["bench", "mxfp8", "--shapes", "64x64", "--m", "1", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["left_out"] == {}
    assert {t["kernel"] for t in answer["timings"]} >= {"cpu_fp8", "reference", "matmul_16bit"}
    table = load_table()
    h200 = device("h200", table)
    asked = Problem("fp8_block_w8a8", n=256, k=256)
    names = kernels_of(table, h200, asked, ())
    others = left_out(table, h200, asked, names)
    assert "package deep-gemm" in others["deepgemm_fp8_block"]
    assert "--kernel reference" in others["reference"]
    assert {*names, *others} == {step.kernel for step in table.routes["fp8_block_w8a8", "cuda"].steps}
    lines = text_lines([timing("a", 1, 1.0)], {**REPORT, "left_out": others})
    assert any(line.startswith("left out: deepgemm_fp8_block: needs.packages") for line in lines)


@pytest.mark.parametrize("stage", ["__init__", "__call__"])
def test_a_kernel_that_breaks_is_left_out_with_its_reason_and_the_others_are_timed(capsys, monkeypatch, stage):
    def breaks(self, *given, **more):
        raise ImportError("libexample.so: undefined symbol")

    monkeypatch.setattr(reference.Kernel, stage, breaks)
    assert main([*SMALL, "--kernel", "reference", "--format", "json"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert {t["fault"] for t in timings if t["kernel"] == "reference"} == {
        "ImportError: libexample.so: undefined symbol"
    }
    assert all(t["call_us"] for t in timings if t["kernel"] != "reference")


def test_copies_outgrow_the_caches_but_are_at_least_two():
    assert copies_of(2**30) == 2
    assert copies_of(16 * 2**20) == 16
    assert copies_of(1) == 16
    assert math.isclose(geometric_mean([1.0, 4.0]), 2.0)
