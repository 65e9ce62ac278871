"""Eager calls of the Hopper FP8 kernels in several launches, which are written once for each address between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_launches import MEMORY, Driver
from rowwise_layers import CHIP, KINDS, bound, data_of, driver, problem_of

from kerneltable.kernels import hopper_fp8_rowwise
from kerneltable.ops import cuda_quantize_rows, stream_memory
from kerneltable.ops import hopper_fp8_rowwise_once as once_op
from kerneltable.ops import hopper_fp8_stages as stages_op
from kerneltable.ops.cuda_quantize_rows import TensorQuantizer, TokenQuantizer
from kerneltable.ops.cuda_vectors import Place
from kerneltable.ops.hopper_fp8_stages import MOST, Stages, Written

__all__ = ["driver"]

SIZES = [(1, 272, 1040), (9, 272, 1040), (65, 272, 1040), (130, 2112, 1024), (1030, 48, 16), (1024, 2112, 7168)]
"""m, n, k: the weight streamed, parts of k, tiles, tiles that are divided."""


@pytest.fixture
def quantizers(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager calls of several launches, with the input's quantizers of csrc/cuda."""

    def quantizer(problem: Any, device: torch.device, scale: Any, upper: Any, *, chip: Any) -> Any:
        place = Place(problem.k, torch.bfloat16, CHIP, device)
        if problem.input_granularity == "token":
            return TokenQuantizer(place, upper)
        return TensorQuantizer(place, scale, upper)

    monkeypatch.setattr(cuda_quantize_rows, "load", driver.load)
    monkeypatch.setattr(cuda_quantize_rows, "Repeated", driver.repeated)
    monkeypatch.setattr(hopper_fp8_rowwise, "input_quantizer", quantizer)
    monkeypatch.setattr(once_op, "serves", lambda *_: False)
    monkeypatch.setattr(stream_memory, "current_stream", lambda device: driver.stream)
    driver.stream = 7


def without_addresses(launched: Any, known: dict[int, str]) -> Any:
    """A launch in which addresses of a call have names, and those that must be other ones in each call are left out."""
    one, grid, block, arguments, maps = launched
    named = [known.get(value, "else" if isinstance(value, int) and value >= 1 << 32 else value) for value in arguments]
    return one, grid, block, named, [(known.get(at, "else"), *about) for at, *about in maps]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.usefixtures("quantizers")
def test_they_are_the_launches_of_the_stages_one_by_one(
    m: int, n: int, k: int, kind: str, with_bias: bool, driver: Driver
) -> None:
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    bias, x = torch.randn(n) if with_bias else None, torch.randn(m, k).bfloat16()
    out = kernel(x, bias)
    straight = list(driver.launched)
    driver.launched.clear()
    codes, scales = kernel.quantize(x)
    staged = kernel.product((codes, scales), bias)
    fixed = {x.data_ptr(): "x", kernel.weight.data_ptr(): "weight", kernel.weight_scale.data_ptr(): "weight scale"}
    fixed |= {0: "none"} | ({} if bias is None else {bias.data_ptr(): "bias"})
    of_scales = MEMORY + -(-m * k // 256) * 256 if kind != "static" else kernel._limit_addresses[0]
    own = fixed | {MEMORY: "codes", of_scales: "scales", out.data_ptr(): "out"}
    by_stages = fixed | {codes.data_ptr(): "codes", scales.data_ptr(): "scales", staged.data_ptr(): "out"}
    if kind == "static":
        by_stages |= {kernel._quantize._scale.data_ptr(): "scales"}
    told = [without_addresses(one, own) for one in straight]
    assert told == [without_addresses(one, by_stages) for one in driver.launched]
    assert "codes" in told[-2][3]
    assert "scales" in told[-1][3]
    assert told[-1][4][0][0] == "codes"
    assert "out" in (*told[-1][3], *(at for at, *_ in told[-1][4]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.usefixtures("quantizers")
def test_what_lies_between_launches_has_room(m: int, n: int, k: int, kind: str, driver: Driver) -> None:
    problem = problem_of(n, k, kind)
    kernel = bound(problem, data_of(problem.at(m), kind, torch.Generator().manual_seed(1)), CHIP)
    kernel(torch.randn(m, k).bfloat16(), None)
    (room,) = driver.asked
    assert driver.taken == []
    scales = MEMORY + -(-m * k // 256) * 256
    *first, (one, grid, _, arguments, _) = driver.launched
    inside = {value for launch in driver.launched for value in launch[3] if MEMORY <= value < 2 * MEMORY}
    assert min(inside) == MEMORY
    assert all(at % 16 == 0 for at in inside)
    used = scales + (0 if kind == "static" else 4 * m if kind in ("token and channel", "limited") else 4)
    if len(first) == 2:  # the largest numbers of blocks, one for each
        (_, seekers, _, (_, largest, *_), _) = first[0]
        assert scales + 4 <= largest
        used = largest + 4 * seekers[0]
    if one.name == "hopper_fp8_rowwise_tiled" and arguments[-3]:  # some tiles are divided
        columns = dict(one.defines)["KT_COLUMNS"]
        assert arguments[-2] >= used
        assert arguments[-2] % 256 == 0
        used = arguments[-2] + grid[0] * columns * 512
    assert used <= MEMORY + room
    assert max(inside) < MEMORY + room


@pytest.mark.usefixtures("quantizers")
def test_rows_apart_and_graphs_go_by_the_stages(driver: Driver) -> None:
    problem = problem_of(272, 1040, "token and channel")
    kernel = bound(problem, data_of(problem.at(9), "", torch.Generator().manual_seed(1)), CHIP)
    wide = torch.randn(9, 1048).bfloat16()
    for x, driver.stream in ((wide[:, :1040], 7), (wide[:, :1040].contiguous(), None)):
        assert kernel(x, None).shape == (9, 272)
    assert [one.name for one, *_ in driver.launched] == ["quantize_token", "hopper_fp8_rowwise"] * 2
    assert driver.asked == []


class Calls:
    """Stages whose launches write down where they were made for, with memory at given addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuse: bool = False) -> None:
        self.stream: int | None = 1
        self.at = 1000
        self.made: list[tuple[int, int]] = []
        self.launched: list[Any] = []
        self.back: list[int] = []
        self.refuse = refuse
        monkeypatch.setattr(stream_memory, "eager_stream", lambda function: self.stream)
        monkeypatch.setattr(stages_op, "take", lambda size, function: self.at)
        monkeypatch.setattr(stages_op, "give_back", self.back.append)
        self.stages = Stages(SimpleNamespace(), 64, self.make)  # type: ignore[arg-type]

    def make(self, memory: int, stream: int) -> Written | None:
        if self.refuse:
            return None
        self.made.append((memory, stream))
        launches = [lambda *given, name=name: self.launched.append((memory, name, given)) for name in "qp"]
        return Written((launches[0],), launches[1], None)  # type: ignore[arg-type]

    def call(self) -> bool:
        return self.stages(torch.zeros(1), None, torch.zeros(1))


def test_launches_are_written_once_for_each_address_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for calls.at, calls.stream in ((1000, 1), (1000, 1), (2000, 1), (1000, 2), (2000, 1)):
        assert calls.call()
    assert calls.made == [(1000, 1), (2000, 1), (1000, 2)]
    assert [(at, name) for at, name, _ in calls.launched] == [
        (at, name) for at in (1000, 1000, 2000, 1000, 2000) for name in "qp"
    ]
    assert calls.back == [1000, 1000, 2000, 1000, 2000]


def test_as_many_are_kept_as_a_few_streams_need(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for calls.at in range(3 * MOST):
        assert calls.call()
        assert len(calls.stages.known) <= MOST


def test_nothing_is_launched_where_launches_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, refuse=True)
    assert not calls.call()
    assert calls.back == [1000]
    calls.stream = None
    assert not calls.call()
    assert (calls.back, calls.launched) == ([1000], [])
