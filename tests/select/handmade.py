"""A small table made by hand: exact tests of the selection need no YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kerneltable.model import (
    Architecture,
    Choice,
    Denial,
    Family,
    Kernel,
    Layer,
    Mark,
    MultipleOf,
    Needs,
    Numerics,
    OneOf,
    Operand,
    Parameter,
    Platform,
    Predicate,
    Range,
    Route,
    RunsOn,
    Scheme,
    Step,
    Table,
)


def at(line: int) -> Mark:
    return Mark("hand.yaml", line, 5)


def one_of(key: str, *values: Any, line: int = 1) -> OneOf:
    return OneOf(key, values, at(line))


def at_least(key: str, minimum: Any, line: int = 1) -> Range:
    return Range(key, minimum, None, at(line))


def at_most(key: str, maximum: Any, line: int = 1) -> Range:
    return Range(key, None, maximum, at(line))


def multiple_of(key: str, divisor: int, line: int = 1) -> MultipleOf:
    return MultipleOf(key, divisor, at(line))


def needs(key: str, name: str, version: str | None = None, line: int = 1) -> Needs:
    return Needs(key, name, version, at(line))


def chip(name: str, platform: str, capability: Any, families: Any, features: Any, fp8: Any = None) -> Architecture:
    return Architecture(name, platform, capability, families, frozenset(features), 99, fp8, at(2))


def cuda() -> Platform:
    chips = (
        chip("sm80", "cuda", (8, 0), ("sm8x",), {"mma_bf16"}),
        chip("sm89", "cuda", (8, 9), ("sm8x",), {"mma_bf16", "mma_fp8"}, "fn"),
        chip("sm90", "cuda", (9, 0), ("sm9x",), {"mma_bf16", "mma_fp8", "wgmma"}, "fn"),
        chip("sm120", "cuda", (12, 0), ("sm12x",), {"mma_bf16", "mma_fp8"}, "fn"),
        chip("sm121", "cuda", (12, 1), ("sm12x",), {"mma_bf16", "mma_fp8"}, "fn"),
    )
    families = (
        Family("sm8x", (8, 0), (8, 9), at(3)),
        Family("sm9x", (9, 0), (9, 9), at(3)),
        Family("sm12x", (12, 0), (12, 9), at(3)),
    )
    devices = {"a100": "sm80", "rtx-4090": "sm89", "h200": "sm90", "rtx-5090": "sm120", "dgx-spark": "sm121"}
    return Platform("cuda", {c.name: c for c in chips}, {f.name: f for f in families}, devices, at(1))


def rocm() -> Platform:
    chips = (
        chip("gfx90a", "rocm", None, (), {"mfma_bf16"}),
        chip("gfx942", "rocm", None, (), {"mfma_bf16", "mfma_fp8"}, "fnuz"),
    )
    return Platform("rocm", {c.name: c for c in chips}, {}, {"mi250": "gfx90a", "mi300x": "gfx942"}, at(1))


def xpu() -> Platform:
    chips = (chip("bmg", "xpu", None, (), {"xmx_bf16"}), chip("pvc", "xpu", None, (), {"xmx_bf16"}))
    devices = {"arc-b580": "bmg", "graphics-0xe20b": "bmg", "max-1550": "pvc"}
    return Platform("xpu", {c.name: c for c in chips}, {}, devices, at(1))


def cpu() -> Platform:
    chips = (
        chip("x86-64-v3", "cpu", None, (), {"avx2"}),
        chip("x86-64-v4", "cpu", None, (), {"avx2", "avx512"}),
        chip("amx", "cpu", None, (), {"avx2", "avx512", "amx_bf16"}),
        chip("neon", "cpu", None, (), {"neon"}),
    )
    return Platform("cpu", {c.name: c for c in chips}, {}, {"epyc-genoa": "x86-64-v4"}, at(1))


def fp8() -> Scheme:
    weight = Operand(("e4m3",), ("block", "tensor"), ((128, 128),), True, ("f32", "e8m0"), (), at(11))
    taken = Operand(("e4m3",), ("block",), ((1, 128),), False, ("f32",), ("dynamic", "static"), at(12))
    return Scheme("fp8", "blocks", weight, taken, {"weight": Parameter("weight", True, (), at(13))}, at(10))


def w8a16() -> Scheme:
    weight = Operand(("e4m3",), ("channel", "block"), ((1, 32),), False, ("f32",), (), at(15))
    taken = Operand(("none",), ("none",), (), False, (), (), at(16))
    return Scheme("w8a16", "weights only", weight, taken, {}, at(14))


EVERYWHERE = ("cuda", "rocm", "xpu", "cpu")


def runs_on(platform: str, *predicates: Predicate, portable: bool = False, line: int = 20) -> RunsOn:
    return RunsOn(platform, portable, predicates, at(line))


def kernel(
    id: str, *accepts: Predicate, on: Any = None, need: tuple[Predicate, ...] = (), kind: str = "native"
) -> Kernel:
    places = [runs_on(name, portable=True) for name in EVERYWHERE] if on is None else on
    numerics = Numerics("f32", True, False, at(21))
    places_by_name = {place.platform: place for place in places}
    return Kernel(
        id=id,
        summary=f"{id} in short",
        parameters=("weight",),
        runs_on=places_by_name,
        needs=need,
        accepts=accepts,
        layout="checkpoint",
        numerics=numerics,
        kind=kind,
        status="unverified",
        verified=(),
        why=f"{id} is here for a reason",
        mark=at(30),
    )


def kernels() -> dict[str, Kernel]:
    rows = (
        kernel(
            "fast",
            one_of("accepts.schemes", "fp8", line=31),
            one_of("accepts.weight_granularity", "block", line=32),
            one_of("accepts.weight_block", "128x128", line=33),
            at_least("accepts.k.min", 128, line=34),
            multiple_of("accepts.k.multiple_of", 128, line=35),
            on=[
                runs_on(
                    "cuda",
                    at_least("runs_on.capability.min", (8, 9), line=36),
                    at_most("runs_on.capability.max", (12, 9), line=37),
                    needs("runs_on.features", "mma_fp8", line=38),
                    line=39,
                )
            ],
            need=(needs("needs.packages", "torch", ">=2.10", line=40),),
        ),
        kernel(
            "wide",
            one_of("accepts.schemes", "fp8", "w8a16", line=41),
            at_least("accepts.n.min", 1, line=42),
            on=[
                runs_on("cuda", at_least("runs_on.capability.min", (8, 0), line=43), portable=True),
                runs_on("rocm", portable=True),
            ],
            kind="weight_only",
        ),
        kernel("reference", one_of("accepts.schemes", "fp8", "w8a16", line=44), kind="reference"),
    )
    return {row.id: row for row in rows}


def route(
    scheme: str, platform: str, *steps: str | Step, require: str | None = None, prefer: str | None = None
) -> Route:
    made = tuple(step if isinstance(step, Step) else Step(step, (), at(50 + i)) for i, step in enumerate(steps))
    hard, soft = ((None if name is None else Choice(name, at(60))) for name in (require, prefer))
    return Route(scheme, platform, made, hard, soft, at(49))


def deny(kernel: str, *predicates: Predicate, source: str = "erratum", **more: Any) -> Denial:
    values: dict[str, Any] = {"platform": None, "reason": "wrong at m=1", "link": None, "until": None, **more}
    return Denial(kernel, source, predicates=predicates, mark=at(70), **values)


def table(
    *routes: Route, rows: Mapping[str, Kernel] | None = None, denials: tuple[Denial, ...] = (), **changes: Any
) -> Table:
    """The small table; routes replace those of their scheme and platform, rows are added to its kernels."""
    known = [route("fp8", name, "fast", "wide", "reference") for name in EVERYWHERE]
    known += [route("w8a16", "cuda", "wide", "reference"), *routes]
    made = Table(
        1,
        {p.name: p for p in (cuda(), rocm(), xpu(), cpu())},
        {scheme.name: scheme for scheme in (fp8(), w8a16())},
        {**kernels(), **(rows or {})},
        {(r.scheme, r.platform): r for r in known},
        denials,
        (Layer("hand.yaml", "0" * 64, ""),),
        {},
    )
    return replace(made, **changes, answers={})
