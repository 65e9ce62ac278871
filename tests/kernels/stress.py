"""Own Hopper kernels on many streams of many processes at a time: `make stress`, on a machine with a Hopper GPU.

A few calls run at a time, so that blocks of different launches share multiprocessors. Every thread repeats one of them
on a stream of its own, with one of two inputs in turn, and compares the outputs with what the same call gave alone: all
these kernels promise the same bits. To compare fills the pipes to memory, which reads of a product then wait for.
Processes share the device by time slices, so blocks stop and go on anywhere. Exit 1 names the call, and where its
output differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Thread

import torch
from hopper_layers import layer, this_chip

from kerneltable.kernels.hopper_fp8_rowwise import Kernel as ByRows
from kerneltable.kernels.hopper_w8a16 import Kernel as WideInputs
from kerneltable.model import Problem
from kerneltable.ops.hopper_fp8_choice import WEIGHT, tiled

AT_A_TIME, THREADS, TOGETHER, MOST_TOLD = 3, 2, 6, 3
"""Calls that run at a time, threads of each, its calls from one comparison to the next, differences told of each."""

WIDEST = tiled(256, WEIGHT, divide=True, apart=True)
"""Tiles that only larger products take."""

Call = Callable[[int], torch.Tensor]
"""Input 0 or 1 to its output."""

Wanted = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Seen:
    """Comparisons by call, and what differed."""

    compared: Counter[str] = field(default_factory=Counter)
    differed: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)


def weight_only(n: int, k: int, granularity: str) -> WideInputs:
    """A layer of hopper_w8a16 for every m."""
    weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    shape = (n, 1) if granularity == "channel" else (-(-n // 128), -(-k // 128))
    scale = (torch.rand(shape, device="cuda") + 0.5) * k**-0.5
    problem = Problem("w8a16_fp8", m=1, n=n, k=k, output="bf16", weight_granularity=granularity)
    return WideInputs(problem, weight=weight, weight_scale=scale, chip=this_chip())


def by_rows(n: int, k: int, granularity: str) -> ByRows:
    """A layer of hopper_fp8_rowwise, a scale a token or one for all; one launch a call, two where it is large."""
    weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
    scale = (torch.rand(n, 1, device="cuda") + 0.5) * k**-0.5
    how = {"weight_granularity": "channel", "input_granularity": granularity}
    problem = Problem("fp8_w8a8", m=1, n=n, k=k, output="bf16", **how)
    return ByRows(problem, weight=weight, weight_scale=scale, chip=this_chip())


def calls() -> dict[str, Call]:
    """Few rows with k in up to eight parts, in one launch and in two; some rows in parts; many with divided tiles."""
    found: dict[str, Call] = {}
    sizes = (
        (2112, 7168, (1, 8, 40, 128, 1024)),
        (10240, 5120, (1, 64, 128)),
        (32768, 512, (64,)),
        (8192, 512, (1024,)),
        (2048, 2048, (200, 1024)),
    )
    for n, k, rows in sizes:
        kernel = layer(n, k)
        for m in rows:
            found[f"hopper_fp8_block {n} x {k}, m={m}"] = with_inputs(partial(kernel, bias=None), m, k)
            if m == 40:
                stages = partial(lambda kernel, x: kernel.product(kernel.quantize(x)), kernel)
                found[f"hopper_fp8_block {n} x {k}, m={m}, two launches"] = with_inputs(stages, m, k)
            if m == 1024 and k != 2048:
                wide = partial(lambda kernel, x: kernel.product(kernel.quantize(x), choice=WIDEST), kernel)
                found[f"hopper_fp8_block {n} x {k}, m={m}, widest tiles"] = with_inputs(wide, m, k)
    sizes = (
        (2112, 7168, (1, 8, 64, 128, 1024)),
        (10240, 5120, (16,)),
        (8192, 8192, (16,)),
        (2048, 2048, (200, 1024)),
    )
    for n, k, rows in sizes:
        for granularity in ("token", "tensor"):
            kernel = by_rows(n, k, granularity)
            for m in rows:
                found[f"hopper_fp8_rowwise {granularity} {n} x {k}, m={m}"] = with_inputs(
                    partial(kernel, bias=None), m, k
                )
    for n, k, rows in ((4096, 7168, (1, 16, 64, 128)), (2112, 7168, (1, 1024)), (6144, 16384, (8, 64))):
        for granularity in ("channel", "block"):
            kernel = weight_only(n, k, granularity)
            for m in rows:
                found[f"hopper_w8a16 {granularity} {n} x {k}, m={m}"] = with_inputs(partial(kernel, bias=None), m, k)
    return found


def with_inputs(product: Callable[[torch.Tensor], torch.Tensor], m: int, k: int) -> Call:
    inputs = [torch.randn(m, k, device="cuda").bfloat16() for _ in range(2)]
    return lambda i: product(inputs[i])


def difference(out: torch.Tensor, wanted: torch.Tensor) -> str:
    """Where two matrices differ, in tiles of 64 columns, and by how much."""
    other = out != wanted
    rows, columns = (other.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    tiles = sorted({column // 64 for column in columns})
    most = float((out.double() - wanted.double()).abs().nan_to_num(torch.inf).max())
    return (
        f"{int(other.sum())} of {other.numel()} differ, by {most:.3g} at most: {len(rows)} rows from {rows[0]} to "
        f"{rows[-1]}, {len(columns)} columns in tiles {tiles[:8]}{' ...' if len(tiles) > 8 else ''} of 64"
    )


def repeat(name: str, call: Call, wanted: Wanted, end: float, seen: Seen) -> None:
    """Call and compare until `end`; an error of a launch is a wrong output too, and ends it."""
    try:
        compare(name, call, wanted, end, seen)
    except Exception as error:
        seen.differed[name] += 1
        seen.told.append(f"BROKEN {name}: {type(error).__name__}: {error}")


def compare(name: str, call: Call, wanted: Wanted, end: float, seen: Seen) -> None:
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        while time.monotonic() < end:
            outputs = [call(i % 2) for i in range(TOGETHER)]
            wrong = torch.stack([(out != wanted[i % 2]).any() for i, out in enumerate(outputs)])
            seen.compared[name] += TOGETHER
            for i in wrong.nonzero().flatten().tolist():
                seen.differed[name] += 1
                if seen.differed[name] <= MOST_TOLD:
                    seen.told.append(f"WRONG {name}: {difference(outputs[i], wanted[i % 2])}")


def run(seconds: float) -> Seen:
    """All calls, for so long in all; those that run together are drawn by lot."""
    made, seen = calls(), Seen()
    with torch.inference_mode():
        wanted = {name: (call(0), call(1)) for name, call in made.items()}
        assert all(out.isfinite().all() for both in wanted.values() for out in both)
    torch.cuda.synchronize()
    names = list(made)
    random.shuffle(names)
    rounds = [names[i : i + AT_A_TIME] for i in range(0, len(names), AT_A_TIME)]
    for together in rounds:
        end = time.monotonic() + seconds / len(rounds)
        jobs = [(name, made[name], wanted[name], end, seen) for name in together for _ in range(THREADS)]
        threads = [Thread(target=repeat, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.cuda.synchronize()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=8, help="that share the device by time slices")
    args = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        print("stress: needs a Hopper GPU")
        return 2
    beside = [sys.executable, __file__, "--seconds", str(args.seconds), "--processes", "1"]
    others = [subprocess.Popen(beside) for _ in range(args.processes - 1)]
    seen = run(args.seconds)
    for line in seen.told:
        print(line)
    print(f"{sum(seen.compared.values())} outputs compared, {sum(seen.differed.values())} wrong", flush=True)
    failed = [other.wait() for other in others]
    return int(any(failed) or bool(seen.differed))


if __name__ == "__main__":
    sys.exit(main())
