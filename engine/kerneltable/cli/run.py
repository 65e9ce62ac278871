"""kerneltable run: every quantized linear of a checkpoint, selected, packed, run and held against float64."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_layers, check_kernels, named_file, table_of
from kerneltable.cli.output import print_json, print_lines
from kerneltable.cli.run_text import counts, print_text, refusal_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from kerneltable.model import Device, Table
    from kerneltable.run.ledger import SetAside
    from kerneltable.run.timing.measure import Failed, Measured

ROWS = 16
"""Default of --m."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="run every quantized linear of a checkpoint and check its numbers",
        description="Select, pack and run every quantized linear of a checkpoint directory on random inputs, and hold "
        "each element against a float64 reference. Exit 0 only when every layer ran within its bound and no sample was "
        "skipped.",
    )
    parser.add_argument("model_dir", nargs="?", metavar="MODEL_DIR", help="a folder with config.json and safetensors")
    parser.add_argument("--sample", metavar="KIND", help="make and run a small random checkpoint; 'all' for each kind")
    parser.add_argument("--size", choices=("small", "medium"), help="size of the samples (default small)")
    parser.add_argument("--keep", metavar="DIR", type=named_file, help="write the samples there and keep them")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda ..., or a device of the table; default: the present one"
    )
    parser.add_argument("--m", type=_rows, metavar="M", help="rows of the random input (default 16)")
    parser.add_argument("--force", metavar="KERNEL", help="take this kernel for each layer; an error where it refuses")
    parser.add_argument("--generate", metavar="TEXT", help="load the whole model (with transformers) and continue TEXT")
    parser.add_argument("--tokens", type=_tokens, metavar="N", help="tokens to generate (default 64)")
    parser.add_argument(
        "--quarantine",
        metavar="FOLDER",
        type=named_file,
        help="leave alone kernels that lost a device or hung before, and remember those that do now",
    )
    parser.add_argument(
        "--verify",
        choices=("first", "always", "never"),
        help="calls of --generate to hold against the reference (default first)",
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="hold weights once: let go of the checkpoint's where a packed copy gives them back exactly",
    )
    add_layers(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 when every layer of everything asked for ran within its bound, else 1; errors are raised."""
    from kerneltable.errors import CheckpointError
    from kerneltable.run.ledger import shared_ledger
    from kerneltable.run.place import present_device, torch_device

    if (args.model_dir is None) == (args.sample is None):
        raise CheckpointError("run: wanted MODEL_DIR or --sample KIND, one of them; see kerneltable run --help")
    _refuse_unread(args)
    table = table_of(args)
    check_kernels([] if args.force is None else [args.force], table)
    device = present_device(args.device, table)
    torch_device(device)  # an error of the question is said once, not for each layer
    if args.quarantine is not None:
        from kerneltable.run.quarantine import Quarantine

        shared_ledger().keep(Quarantine(args.quarantine))
    if args.generate is not None:
        from kerneltable.cli.generation import answer

        with _folders(args) as (folders, skipped):
            return answer(folders, skipped, table, args)
    with _folders(args) as (folders, skipped):
        measured, failed = _measure(folders, table, device, args)
    aside = shared_ledger().report().set_aside
    if args.format == "json":
        print_json(as_json(measured, failed, skipped, aside))
    else:
        print_text(measured, failed, aside)
        print_lines(skipped)
        print_lines([f"{len(skipped)} of {len(skipped) + len(folders)} samples were skipped"] if skipped else [])
    sound = measured and all(layer.within for layer in measured)
    return 0 if sound and not (failed or skipped) else 1


def as_json(
    measured: Sequence[Measured], failed: Sequence[Failed], skipped: Sequence[str], aside: Sequence[SetAside] = ()
) -> dict[str, Any]:
    """The answer as JSON-able values; an error over bound that is not finite is null."""
    from kerneltable.select.facts import to_facts

    worst = max((layer.error_over_bound for layer in measured), default=0.0)
    return {
        "format": 1,
        "layers": [_layer_json(layer) for layer in measured],
        "failed": [{"checkpoint": f.checkpoint, "name": f.name, "reason": f.reason} for f in failed],
        "summary": {
            "layers": len(measured),
            "within_bound": sum(layer.within for layer in measured),
            "failed": len(failed),
            "worst_error_over_bound": _finite(worst),
            "kernels": counts(measured),
            "weight_bytes": sum(layer.weight_bytes for layer in measured),
            "packed_bytes": sum(layer.packed_bytes for layer in measured),
            "device": to_facts(measured[0].selection.device) if measured else None,
            "refused": refusal_lines(measured, failed, aside),
            "skipped": list(skipped),
        },
    }


def _layer_json(layer: Measured) -> dict[str, Any]:
    return {
        "checkpoint": layer.checkpoint,
        "name": layer.name,
        "scheme": layer.scheme,
        "n": layer.n,
        "k": layer.k,
        "kernel": layer.kernel,
        "error_over_bound": _finite(layer.error_over_bound),
        "microseconds": round(layer.microseconds, 2),
        "weight_bytes": layer.weight_bytes,
        "packed_bytes": layer.packed_bytes,
        "kept": layer.kept or None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _refuse_unread(args: argparse.Namespace) -> None:
    """CheckpointError for an option that nothing would read: what it asks for would not be done."""
    from kerneltable.errors import CheckpointError

    makes, writes = args.sample is not None, args.generate is not None
    rules = (
        ("--keep", args.keep, makes, "it says where samples are kept; add --sample KIND, or leave it out"),
        ("--size", args.size, makes, "it is the size of samples; add --sample KIND, or leave it out"),
        ("--tokens", args.tokens, writes, "it says how much --generate writes; add --generate TEXT, or leave it out"),
        ("--verify", args.verify, writes, "every call is checked without it; add --generate TEXT, or leave it out"),
        ("--m", args.m, not writes, "the text decides how many rows --generate has; leave it out"),
    )
    for option, given, is_read, why in rules:
        if given is not None and not is_read:
            raise CheckpointError(f"run {option}: {why}")


def _rows(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"M must be 1 to {1 << 20}; found '{text}'")
    return int(text)


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 16:
        raise argparse.ArgumentTypeError(f"N must be 1 to {1 << 16}; found '{text}'")
    return int(text)


@contextmanager
def _folders(args: argparse.Namespace) -> Iterator[tuple[list[tuple[str, Path]], list[str]]]:
    """The checkpoints to run, as (label, folder), and the sample kinds left out with the reason."""
    if args.sample is None:
        yield [(Path(args.model_dir).name or args.model_dir, Path(args.model_dir))], []
        return
    with tempfile.TemporaryDirectory(prefix="kerneltable-") as temporary:
        yield _write_samples(args.sample, Path(args.keep or temporary), args.size or "small")


def _write_samples(kind: str, root: Path, size: str) -> tuple[list[tuple[str, Path]], list[str]]:
    from kerneltable.run.checkpoints.samples import KINDS, write_sample

    folders: list[tuple[str, Path]] = []
    skipped: list[str] = []
    for wanted in KINDS if kind == "all" else (kind,):
        try:
            write_sample(wanted, root / wanted, size)
        except ImportError as error:
            skipped.append(f"sample {wanted} is skipped: {error}; {_way_to(error.name)}")
        else:
            folders.append((wanted, root / wanted))
    return folders, skipped


def _way_to(module: str | None) -> str:
    """How the module that a sample needs is installed."""
    name = (module or "").partition(".")[0]
    if name in ("", "compressed_tensors"):
        return "install compressed-tensors to write it: pip install 'kerneltable[samples]'"
    return f"install {name} to write it"


def _measure(
    folders: Sequence[tuple[str, Path]], table: Table, device: Device, args: argparse.Namespace
) -> tuple[list[Measured], list[Failed]]:
    from kerneltable.run.checkpoints.checkpoint import load_linears
    from kerneltable.run.timing.measure import measure_checkpoint

    measured: list[Measured] = []
    failed: list[Failed] = []
    keeps = not args.release
    for label, folder in folders:
        how = {"kernel": args.force, "keep_checkpoint": keeps, "verify": "never"}  # every result is checked here
        linears = load_linears(folder, table, device, strict=False, **how)
        with _progress(label, len(linears)) as seen:
            done, lost = measure_checkpoint(linears, label, args.m or ROWS, seen=seen)
        measured += done
        failed += lost
    return measured, failed


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr if that is a terminal, else silence."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda name: progress.update(task, advance=1, description=f"{label} {name}")
