"""`kerneltable lock`: table digest, package versions and every decision, to be held against later (`check --lock`)."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kerneltable.cli.devices import add_devices, devices_of
from kerneltable.cli.options import add_format, add_layers, named_file, say_unasked, table_of
from kerneltable.cli.output import write_text
from kerneltable.cli.registered import say_unregistered
from kerneltable.errors import Finding, ProblemError
from kerneltable.model import Mark, Needs, Table

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers

LARGEST_LOCK = 16 << 20
CODES: Mapping[str, str] = {"table": "KT601", "decision": "KT602", "package": "KT603", "lock": "KT604"}
ALWAYS = ("torch", "triton")


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("lock", help="write down what a table decides", description=__doc__)
    add_devices(parser, default="the present machine")
    add_layers(parser)
    parser.add_argument("--no-packages", action="store_true", help="leave versions of installed packages open")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=named_file, help="write the lock to a file instead of stdout"
    )
    add_format(parser)


def run(args: Namespace) -> int:
    """Write the lock (JSON), or with --format text and -o its digest alone; always 0."""
    from kerneltable.select.lock import lock_of

    table = table_of(args)
    if args.devices or args.facts:
        devices = devices_of(args, table)
    else:
        from kerneltable.run.probe import current_device
        from kerneltable.select import with_packages

        here = current_device(table)
        devices = [here if args.packages is None else with_packages(here, args.packages)]
    say_unasked(args.packages, table)
    lock = lock_of(table, devices, {} if args.no_packages else installed(table))
    decided = [winners for schemes in lock["decisions"].values() for winners in schemes.values()]
    say_unregistered(table, (won["kernel"] for winners in decided for won in winners))
    text = json.dumps(lock, indent=2) + "\n"
    if args.out is None:
        print(text, end="")
        return 0
    write_text(args.out, text)
    print(text if args.format == "json" else f"{lock['digest']}  {args.out}", end="" if args.format == "json" else "\n")
    return 0


def installed(table: Table) -> dict[str, str]:
    """Versions of kerneltable, torch, triton and what the rows need, as far as installed. Nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    from kerneltable import __version__
    from kerneltable.select.versions import distribution

    needs = (need for kernel in table.kernels.values() for need in kernel.needs)
    names = {distribution(need.name) for need in needs if isinstance(need, Needs) and need.key == "needs.packages"}
    found = {"kerneltable": __version__}
    for name in sorted({*ALWAYS, *names} - {"kerneltable"}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def lock_findings(path: str, table: Table) -> list[Finding]:
    """Every drift from a lock file as a finding.

    errors   ProblemError when the file is too large or no lock, OSError when it cannot be read
    """
    from kerneltable.select.lock import drifts, read_lock
    from kerneltable.table.rules import rules

    with Path(path).open("rb") as file:
        data = file.read(LARGEST_LOCK + 1)
    if len(data) > LARGEST_LOCK:
        raise ProblemError(f"{path}: a lock has at most {LARGEST_LOCK} bytes; this one has more")
    lock = read_lock(data.decode("utf-8", "replace"), path)
    known, at = rules(), Mark(path, 1, 1)
    help = "look at `kerneltable diff` between then and now; if it is right, write the lock again"
    return [
        Finding(code := CODES[drift.what], known[code].severity, drift.message, at, drift.what, help=help)
        for drift in drifts(lock, table, installed(table), path)
    ]
