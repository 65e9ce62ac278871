"""Every own CUDA kernel once over small shapes with tails, for compute-sanitizer: `make sanitize`, with a GPU.

Prints the kernels that ran. A process that pytest does not collect, since the sanitizer wraps a whole process.
"""

from __future__ import annotations

import torch

import kerneltable as kt
from kerneltable.kernels import registry
from kerneltable.model import Problem, Table
from kerneltable.run.place import chip_for
from kerneltable.select import refusals

N, K = 400, 1040
ROWS = (1, 17, 70, 200)
OWN = ("hopper_fp8_block", "hopper_fp8_block_fixed", "hopper_w8a16", "marlin_w8a16", "mma_fp8_block")


def layers(where: torch.device) -> list[tuple[Problem, dict[str, torch.Tensor]]]:
    """One layer of each kind of scales, and one whose few tiles are divided along k."""
    found = []
    for scheme, granularity, n, k in (
        ("fp8_block_w8a8", "block", N, K),
        ("fp8_block_w8a8", "block", 1024, 4096),
        ("w8a16_fp8", "channel", N, K),
        ("w8a16_fp8", "block", N, K),
    ):
        codes = torch.randint(0, 120, (n, k), dtype=torch.uint8, device=where)
        shape = (n, 1) if granularity == "channel" else (-(-n // 128), -(-k // 128))
        tensors = {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": torch.rand(shape, device=where)}
        block = (128, 128) if granularity == "block" else None
        found.append((Problem(scheme, n=n, k=k, weight_granularity=granularity, weight_block=block), tensors))
    return found


def run(table: Table) -> set[str]:
    """The kernels that fit this device and ran."""
    device, where = kt.current_device(), torch.device("cuda", torch.cuda.current_device())
    ran = set()
    for problem, tensors in layers(where):
        for name in OWN:
            if refusals(table, name, device, problem):
                continue
            kernel = registry.load(name)(problem, **tensors, chip=chip_for(table, device, where))
            for m in ROWS:
                x = torch.randn(m, problem.k, device=where).bfloat16()
                assert kernel(x, torch.randn(problem.n, device=where)).isfinite().all()
            ran.add(name)
    torch.cuda.synchronize()
    return ran


if __name__ == "__main__":
    print("ran:", ", ".join(sorted(run(kt.load_table()))))
