"""Many threads call one layer while faults come and go: every call is right, or the error it has to be."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

import torch
from faulty import LAYER, ORDER, ROUTE, K, N, layer_tensors

from kerneltable.kernels import registry
from kerneltable.run.ledger import Ledger
from kerneltable.run.plan import Plan, bind
from kerneltable.select import device
from kerneltable.table import load_table

THREADS = 16


class Weather:
    """Fake kernels: a result holds its input's first number. The first two fail as the mood says, the last never."""

    def __init__(self) -> None:
        self.mood = dict.fromkeys(ROUTE, "fine")
        self.calls: Counter[str] = Counter()

    def load(self, kernel: str):
        def construct(problem, **_):
            if self.mood[kernel] == "unpackable":
                raise RuntimeError("cannot pack")

            def call(x, bias):
                self.calls[kernel] += 1
                mood = self.mood[kernel]
                if mood == "raises":
                    raise RuntimeError("thunder")
                if mood == "full":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
                out = x[:, :1].expand(-1, N).contiguous()
                return out[:, 1:] if mood == "short" else out

            return call

        return construct

    def change(self, dice: random.Random) -> None:
        for kernel in ROUTE[:2]:
            self.mood[kernel] = dice.choice(["fine", "fine", "raises", "short", "full", "unpackable"])


def storm(plan: Plan, weather: Weather, calls: int, seconds: float) -> Counter[str]:
    """Count right, wrong, out of memory (right too: both tries met it) and unexpected outcomes of all calls."""
    found: Counter[str] = Counter()
    adding, over = threading.Lock(), threading.Event()

    def ask(number: int) -> None:
        mine: Counter[str] = Counter()
        inputs = [torch.full((m, K), float(number), dtype=torch.bfloat16) for m in (1, 3, 17)]
        for turn in range(calls):
            x = inputs[turn % 3]
            try:
                out = plan(x, None)
                good = out.shape == (x.shape[0], N) and float(out[-1, -1]) == number
                mine["right" if good else "wrong"] += 1
            except torch.OutOfMemoryError:
                mine["out of memory"] += 1
            except Exception as error:
                mine[repr(error)] += 1
        with adding:
            found.update(mine)

    def blow() -> None:
        dice = random.Random(0)
        while not over.wait(0.001):
            weather.change(dice)
            plan.ledger.forget()

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(THREADS)]
    wind = threading.Thread(target=blow, daemon=True)
    wind.start()
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    over.set()
    found["stuck threads"] = sum(thread.is_alive() for thread in threads)
    wind.join()
    return found


def prepared(weather: Weather) -> Plan:
    """A layer bound to the fake kernels that `registry.load` gives now."""
    table = load_table(overrides=[("order", ORDER)])
    h200 = device("h200", table, packages={"torch": "2.11.0", "triton": "3.6.0", "kerneltable": None})
    return bind(table, h200, LAYER, layer_tensors(), ledger=Ledger("never"))


def test_no_call_is_wrong_or_stuck_while_faults_come_and_go(monkeypatch):
    weather = Weather()
    monkeypatch.setattr(registry, "load", weather.load)
    plan = prepared(weather)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        found = storm(plan, weather, calls=300, seconds=60)
    finally:
        sys.setswitchinterval(switch)
    assert found.pop("stuck threads") == 0
    assert found.pop("out of memory", 0) + found.pop("right") == THREADS * 300
    assert not found
    assert all(weather.calls[kernel] > 0 for kernel in ROUTE), "the storm met too few faults"
    assert plan.ledger.report().failures.keys() == set(ROUTE[:2])


def test_a_storm_sees_a_kernel_that_computes_wrong(monkeypatch):
    weather = Weather()
    ones = torch.ones(32, N, dtype=torch.bfloat16)
    monkeypatch.setattr(registry, "load", lambda kernel: lambda problem, **_: lambda x, bias: ones[: len(x)])
    found = storm(prepared(weather), weather, calls=3, seconds=60)
    assert found["wrong"] == (THREADS - 1) * 3


if __name__ == "__main__":
    registry.load = Weather.load.__get__(weather := Weather())
    started = time.monotonic()
    print(storm(prepared(weather), weather, calls=int(sys.argv[1]), seconds=3600), weather.calls)
    print(f"{time.monotonic() - started:.0f} s")
