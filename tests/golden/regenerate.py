"""Write the golden files: what the shipped table decides, and what each of its rows takes.

selections.txt            every device name x question x shape -> kernel and first refusals; torch, triton and this
                          project are installed
selections_with_all.txt   the same, with every package and op installed
rows.txt                  what each row takes by itself (rows.py)

A change of the table that changes a decision changes these files, so that a reviewer sees it. Run this after such a
change: python tests/golden/regenerate.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows

from kerneltable.model import Device, Problem, Table
from kerneltable.select import device, select, with_packages
from kerneltable.table import load_table

FILE = Path(__file__).with_name("selections.txt")
FILE_WITH_ALL = Path(__file__).with_name("selections_with_all.txt")
UNKNOWN = ("cuda:13.0",)

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "fp8_block_w8a8": ({}, {"weight_scale": "e8m0"}, {"weight_block": (64, 128)}),
    "fp8_w8a8": (
        {},
        {"weight_granularity": "tensor", "input_granularity": "tensor", "input_scaling": "static"},
        {"weight_granularity": "tensor"},
    ),
    "w8a16_fp8": ({}, {"weight_granularity": "block"}),
    "mxfp8": ({}, {"input_granularity": "none"}),
}
SHAPES: tuple[dict[str, Any], ...] = (
    {"n": 4096, "k": 4096},
    {"n": 4096, "k": 4096, "m": 1},
    {"n": 4096, "k": 4096, "m": 512, "bias": True},
    {"n": 576, "k": 7168, "input": "f16", "output": "f16"},
    {"n": 1000, "k": 3904},
    {"n": 130, "k": 130},
)


def lines(table: Table, installed: str = "") -> Iterator[str]:
    """The text of selections.txt, line by line; installed is what `--with` takes: "all", or "" for no more."""
    yield "# Written by regenerate.py. One block a question; kernel <- the shapes that get it; below, what is"
    yield "# refused at some shape, each kernel with the first predicate that refuses it."
    for scheme in table.schemes:
        for details in VARIANTS.get(scheme, ({},)):
            said = ", ".join(f"{name} {_plain(value)}" for name, value in details.items())
            yield ""
            yield f"{scheme} ({said or 'defaults'})"
            for platform in table.platforms.values():
                for name in platform.devices:
                    where = _device(table, f"{platform.name}:{name}", installed)
                    yield from _decisions(table, where, scheme, details)
            for name in UNKNOWN:
                yield from _decisions(table, _device(table, name, installed), scheme, details)


def _device(table: Table, name: str, installed: str) -> Device:
    where = device(name, table)
    return with_packages(where, installed) if installed else where


def _decisions(table: Table, where: Device, scheme: str, details: dict[str, Any]) -> Iterator[str]:
    kernels: dict[str, list[str]] = {}
    refused: dict[str, dict[str, None]] = {}
    for shape in SHAPES:
        answer = select(table, where, Problem(scheme, **details, **shape))
        kernels.setdefault(answer.kernel or "NONE", []).append(_shape(shape))
        for candidate in answer.candidates:
            if candidate.refusals:
                refused.setdefault(candidate.kernel, {})[candidate.refusals[0].predicate] = None
    every = len(kernels) == 1
    parts = (kernel if every else f"{kernel} <- {' '.join(shapes)}" for kernel, shapes in kernels.items())
    yield f"  {where.name:<28} {where.architecture or 'unknown':<10} {'; '.join(parts)}"
    if refused:
        said = (f"{name} ({' | '.join(first)})" for name, first in refused.items())
        yield f"{'':<31}refused: {', '.join(said)}"


def _shape(shape: dict[str, Any]) -> str:
    rows = f"{shape['m']}x" if "m" in shape else ""
    dtype = f"-{shape['input']}" if "input" in shape else ""
    return f"{rows}{shape['n']}x{shape['k']}{dtype}{'+bias' if shape.get('bias') else ''}"


def _plain(value: Any) -> str:
    return "x".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def written(table: Table) -> Iterator[tuple[Path, str]]:
    """Each golden file with the text that it should have."""
    for file, made in ((rows.FILE, rows.lines(table)), (FILE, lines(table)), (FILE_WITH_ALL, lines(table, "all"))):
        yield file, "\n".join(made) + "\n"


if __name__ == "__main__":
    for file, text in written(load_table()):
        file.write_text(text, encoding="utf-8")
        print(f"{file.name}: {len(text.splitlines())} lines")
