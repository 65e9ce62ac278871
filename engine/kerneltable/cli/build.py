"""`kerneltable build`: compile the device code of a table ahead of time, with or without a GPU, into the cache.

A later run that must not compile (KERNELTABLE_JIT=0, or `kerneltable.set_compiling(jit=False)`) finds it there. CUDA
code needs NVRTC and cuda-bindings, neither nvcc nor a driver; C++ for this machine's processor needs its compiler.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import DTYPES, add_format, add_overrides, check_kernels, count, named_file
from kerneltable.cli.output import print_json
from kerneltable.errors import KernelTableError, ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kerneltable.cli.options import Subparsers
    from kerneltable.model import Table
    from kerneltable.run.checks.building import Built, Job
    from kerneltable.run.compiling import CompileSettings

ERRORS_SHOWN = 3
HOST_NAMES = ("host", "cpu")


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("build", help="compile device code ahead of time", description=__doc__)
    parser.add_argument("table", metavar="TABLE", nargs="?", help="the table (default: the one of kerneltable)")
    add_overrides(parser)
    parser.add_argument(
        "--arch", metavar="LIST", required=True,
        help="architectures or devices of the table, separated by commas: sm90, h200, host; or all",
    )  # fmt: skip
    parser.add_argument("--kernel", metavar="ID", action="append", default=[], help="this row alone; repeatable")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=named_file,
        help="the folder to fill (default: KERNELTABLE_CACHE_DIR, else the user's)",
    )
    parser.add_argument(
        "--dtype", metavar="LIST", type=dtypes, default=(("bf16", "bf16"),),
        help="dtypes of inputs and outputs, separated by commas: bf16, f16, f32, bf16:f32 (default bf16)",
    )  # fmt: skip
    narrow = parser.add_argument_group("only what these layers can ask for (default: layers of any size)")
    narrow.add_argument("--shapes", metavar="LIST", help="NxK or models as in `kerneltable bench`, separated by commas")
    narrow.add_argument(
        "--model", metavar="DIR", type=named_file, help="a checkpoint's linears, unfused; fused ones need --shapes too"
    )
    narrow.add_argument("--multiprocessors", metavar="COUNT", type=count, help="of the device (default: any)")
    narrow.add_argument(
        "--some", metavar="COUNT", type=count,
        help="at most so many instances of each source and architecture, spread over all: shows that code compiles",
    )  # fmt: skip
    parser.add_argument("--processes", metavar="COUNT", type=count, help="that compile (default: one for each core)")
    add_format(parser)


def dtypes(text: str) -> tuple[tuple[str, str], ...]:
    """ "bf16,f16:f32" as pairs of input and output; one name stands for both."""
    pairs = [part.partition(":")[::2] for part in text.split(",")]
    found = tuple(dict.fromkeys((x, out or x) for x, out in pairs))
    if any(name not in DTYPES for pair in found for name in pair):
        raise ArgumentTypeError(f"{', '.join(DTYPES)} or two of them as bf16:f32 were wanted; found '{text[:40]}'")
    return found


def run(args: Namespace) -> int:
    """0 when all is built, 1 when something is not, 2 when nothing can be (no compiler) or a name is unknown."""
    from kerneltable.run.checks.building import build, divided
    from kerneltable.table import load_table

    table = load_table(args.table, list(args.override), any_writer=args.allow_insecure_permissions)
    settings = _settings(args)
    jobs = list(_jobs(args, table))
    possible, unbuilt = divided(jobs)
    if unbuilt and not possible:
        reasons = dict.fromkeys(error for built in unbuilt for error in built.errors)
        raise KernelTableError(f"nothing was built: {'; '.join(reasons)}")
    done: list[Built] = []
    for built in chain(build(possible, settings, args.processes), unbuilt):
        done.append(built)
        if args.format == "text":
            _show_progress("")
            print("\n".join(_text(built)), flush=True)
            _show_progress(f"{len(done)} of {len(jobs)} sources and architectures")
    _show_progress("")
    if args.format == "json":
        print_json({"format": 1, "table": table.digest, **summary(done, settings), "built": [as_json(b) for b in done]})
    else:
        print(_summary_text(summary(done, settings)))
    return 1 if any(built.errors for built in done) else 0


def as_json(built: Built) -> dict[str, Any]:
    """One source for one architecture."""
    job = built.job
    return {
        "source": job.file,
        "architecture": job.architecture,
        "target": None if job.chip is None else job.chip.target,
        "kernels": list(job.kernels),
        "instances": len(built.outcomes),
        "compiled": built.count(fresh=True),
        "cached": built.count(fresh=False),
        "failed": sum(bool(one.error) for one in built.outcomes),
        "seconds": round(sum(one.seconds for one in built.outcomes), 3),
        "bytes": sum(one.size for one in built.outcomes),
        "errors": list(built.errors),
    }


def summary(done: Sequence[Built], settings: CompileSettings) -> dict[str, Any]:
    """All jobs together, and where the binaries are."""
    each = [as_json(built) for built in done]
    sums = {key: sum(one[key] for one in each) for key in ("instances", "compiled", "cached", "failed", "bytes")}
    return {"folder": str(settings.home()), **sums, "seconds": round(sum(one["seconds"] for one in each), 3)}


def _text(built: Built) -> Iterator[str]:
    one = as_json(built)
    state = ", ".join(f"{one[key]} {key}" for key in ("compiled", "cached", "failed") if one[key])
    yield (
        f"{one['source']:<34} {one['architecture']:<6} {counted(one['instances'])}: {state}; "
        f"{one['bytes'] / 1024:.0f} KiB, {one['seconds']:.1f} s"
    )
    for error in one["errors"][:ERRORS_SHOWN]:
        yield from (f"    {line}" for line in error.splitlines())
    if len(one["errors"]) > ERRORS_SHOWN:
        yield f"    and {len(one['errors']) - ERRORS_SHOWN} other errors (--format json lists all)"


def counted(instances: int) -> str:
    """A number of instances in words."""
    return f"{instances:>4} instance{'' if instances == 1 else 's'}"


def _summary_text(found: dict[str, Any]) -> str:
    if not found["instances"]:
        return "nothing to build: no row with device code of this project runs there"
    return (
        f"{counted(found['instances']).strip()}: {found['compiled']} compiled, {found['cached']} cached, "
        f"{found['failed']} failed; {found['bytes'] / 2**20:.1f} MiB in {found['folder']}"
    )


def _settings(args: Namespace) -> CompileSettings:
    """Where to write: --out, else what the environment says, else the user's own cache."""
    from kerneltable.run.compiling import active, compile_settings

    if not active().compile:
        raise KernelTableError("KERNELTABLE_JIT=0 forbids compiling, and build compiles; unset it for this command")
    settings = active() if args.out is None else compile_settings(Path(args.out).absolute())
    if settings.home() is None:
        raise KernelTableError(
            "no folder to fill: this user has no home folder; give --out DIR, or set KERNELTABLE_CACHE_DIR or HOME"
        )
    return settings


def _jobs(args: Namespace, table: Table) -> Iterator[Job]:
    from kerneltable.run.checks.building import cuda_instances_of, cuda_jobs, host_jobs, rows_with_code

    check_kernels(args.kernel, table)
    names, host = architectures(args.arch, table)
    rows = [row for row in rows_with_code(table, names) if not args.kernel or row in args.kernel]
    products = _products(args, table)  # read also where no row has CUDA code: a wrong name is an error everywhere
    asked = cuda_instances_of(rows, products, args.dtype) if rows else {}
    for name in names:
        yield from cuda_jobs(table, name, asked, args.some)
    for job in host_jobs(table) if host else ():
        if not args.kernel or set(args.kernel) & set(job.kernels):
            yield job


def architectures(text: str, table: Table) -> tuple[list[str], bool]:
    """The CUDA architectures that a list names, in order, each once; and whether this machine's processor is meant.

    errors    ProblemError for a name that stands for no chip, or for a processor other than "host"
    """
    from kerneltable.select import device

    found: list[str] = []
    host = False
    for name in text.split(","):
        if name == "all":
            found += table.platforms["cuda"].architectures if "cuda" in table.platforms else ()
            host = True
            continue
        if name in HOST_NAMES:
            host = True
            continue
        chip = device(name, table)
        if chip.platform == "cpu":
            raise ProblemError(f"--arch {name[:40]}: C++ is compiled for the machine it is built on; say host")
        if chip.architecture is None:
            raise ProblemError(f"--arch {name[:40]}: the table describes no such chip; add an architecture to it")
        found += [chip.architecture] if chip.platform == "cuda" else []
    return list(dict.fromkeys(found)), host


def _products(args: Namespace, table: Table) -> list[Any]:
    from kerneltable.run.checks.building import products_of

    shapes: list[tuple[int, int]] = []
    if args.shapes is not None:
        from kerneltable.cli.bench import parse_shapes

        shapes += parse_shapes(args.shapes)
    if args.model is not None:
        from kerneltable.run.checkpoints.checkpoint import load_linears

        linears = load_linears(args.model, table, "cpu", strict=False).contents.linears.values()
        shapes += [(found.entries["weight"].shape[0], found.entries["weight"].shape[1]) for found in linears]
    any_size = args.shapes is None and args.model is None
    return products_of(None if any_size else dict.fromkeys(shapes), args.multiprocessors)


def _show_progress(text: str) -> None:
    """One line on stderr that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
