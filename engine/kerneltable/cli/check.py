"""`kerneltable check`: validate a table and override files, then prove what follows from them; all findings at once.

Never imports torch, except with --deep, which loads and compiles what the table names. --canary runs kernels, in other
processes.
"""

from __future__ import annotations

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kerneltable.cli.options import add_format, add_overrides, check_kernels, named_file, seconds
from kerneltable.cli.output import print_json, print_lines
from kerneltable.cli.proofs import as_findings, file_options, merged, with_proofs
from kerneltable.errors import Finding, ProblemError
from kerneltable.model import Table

if TYPE_CHECKING:
    from collections import Counter

    from kerneltable.cli.baseline import Print
    from kerneltable.cli.canary import Tried
    from kerneltable.cli.options import Subparsers

UNREADABLE = "KT121"


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("check", help="validate a table and override files", description=__doc__)
    parser.add_argument(
        "table", metavar="TABLE", nargs="?", help="the table (default: the one that comes with kerneltable)"
    )
    add_overrides(parser)
    parser.add_argument("--notes", action="store_true", help="also proofs that are only worth knowing")
    parser.add_argument("--deep", action="store_true", help="also load every kernel and compile all device code")
    _add_canary(parser)
    parser.add_argument("--fail-on-warn", action="store_true", help="exit 1 for warnings too")
    parser.add_argument(
        "--lock", metavar="FILE", type=named_file, help="refuse what is not as `kerneltable lock` wrote it down"
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        type=named_file,
        help="findings that do not block: what `check --format json` wrote earlier",
    )
    add_format(parser, ("text", "json", "github", "sarif", "junit"))


def _add_canary(parser: ArgumentParser) -> None:
    from kerneltable.cli.canary import SECONDS

    canary = parser.add_argument_group("kernels of this machine, each run once in a process of its own")
    canary.add_argument("--canary", action="store_true", help="find kernels that hang, crash or compute wrong")
    canary.add_argument(
        "--canary-seconds",
        type=seconds,
        metavar="S",
        help=f"kill a kernel's process after so long (default {SECONDS:g})",
    )
    canary.add_argument("--kernel", metavar="ID", action="append", default=[], help="this kernel alone; repeatable")
    canary.add_argument(
        "--quarantine",
        metavar="FOLDER",
        type=named_file,
        help="remember those that hang or crash for `run --quarantine`",
    )


def run(args: Namespace) -> int:
    """Print the findings and a summary; 1 for errors (or warnings on request).

    2 when a file cannot be read, or when --canary ran nothing, or nothing of a kernel that was asked for by name.
    """
    from kerneltable.kernels.registry import signatures
    from kerneltable.table import check_table

    _refuse_without_canary(args)
    known_before = _read_baseline(args.baseline)
    table, findings = check_table(
        args.table,
        list(args.override),
        signatures=signatures(),
        any_writer=args.allow_insecure_permissions,
    )
    drift = _drift(args.lock, table)
    if table is not None:
        findings = with_proofs(table, findings, file_options(args.table, args.override), notes=args.notes)
    if table is not None and args.deep:
        from kerneltable.cli.deep import deep_findings

        findings = merged(table, findings, deep_findings(table, notes=args.notes))
    tried = None
    if table is not None and args.canary:
        tried, hurt = _canaries(args, table)
        findings = merged(table, findings, hurt)
    findings, known = _divided((*findings, *drift), known_before, usable=table is not None)
    _print(args.format, _name(args.table, args.override, table), table, findings, known, tried)
    if any(finding.code == UNREADABLE for finding in findings):
        return 2
    severities = {finding.severity for finding in findings}
    if "error" in severities or (args.fail_on_warn and "warning" in severities):
        return 1
    return 2 if tried is not None and (not tried.ran or (args.kernel and tried.idle)) else 0


def _refuse_without_canary(args: Namespace) -> None:
    """ProblemError for options that only --canary reads: nothing would be run, and it would look as if it had been."""
    only = {"--kernel": args.kernel, "--quarantine": args.quarantine, "--canary-seconds": args.canary_seconds}
    for option, given in only.items():
        if given not in (None, []) and not args.canary:
            raise ProblemError(
                f"check {option}: it says how kernels are run, and none is; add --canary, or leave it out"
            )


def _canaries(args: Namespace, table: Table) -> tuple[Tried, list[Finding]]:
    """What running the kernels of this machine, each in a process of its own, finds; which ran is said on stderr."""
    from kerneltable.cli.canary import SECONDS, Tried, canaries
    from kerneltable.run.quarantine import Quarantine

    check_kernels(args.kernel, table)
    kept = None if args.quarantine is None else Quarantine(args.quarantine)
    files = shlex.split(file_options(args.table, args.override))
    files += ["--allow-insecure-permissions"] if args.allow_insecure_permissions else []
    limit, tried = args.canary_seconds or SECONDS, Tried()
    found = canaries(table, files, seconds=limit, only=args.kernel, quarantine=kept, tried=tried)
    findings = as_findings(found, notes=args.notes)
    print(f"kerneltable: check --canary: ran {', '.join(tried.ran) or 'no kernel'}", file=sys.stderr)
    for kernel, why in tried.idle.items() if args.kernel else ():
        print(
            f"kerneltable: check --canary --kernel {kernel}: a run was wanted; it was not run: {why}", file=sys.stderr
        )
    if tried.idle and not args.kernel:
        print(f"kerneltable: check --canary: do not fit this machine: {', '.join(tried.idle)}", file=sys.stderr)
    return tried, findings


def _drift(lock: str | None, table: Table | None) -> list[Finding]:
    """What is not as a lock says; nothing without one, or without a table."""
    if lock is None or table is None:
        return []
    from kerneltable.cli.lock import lock_findings

    return lock_findings(lock, table)


def _read_baseline(path: str | None) -> Counter[Print] | None:
    if path is None:
        return None
    from kerneltable.cli.baseline import read_baseline

    return read_baseline(path)


def _divided(
    findings: tuple[Finding, ...], known: Counter[Print] | None, *, usable: bool
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings that count, and those that a baseline knows already."""
    if known is None:
        return findings, ()
    from kerneltable.cli.baseline import divide

    return divide(findings, known, usable=usable)


def _print(
    form: str,
    name: str,
    table: Table | None,
    findings: Sequence[Finding],
    known: Sequence[Finding] = (),
    tried: Tried | None = None,
) -> None:
    from kerneltable.cli.findings import count_text, finding_json, finding_lines, github_lines
    from kerneltable.cli.reports import junit, sarif, write_step_summary

    if form == "json":
        listed = {"findings": [finding_json(f) for f in findings], "known": [finding_json(f) for f in known]}
        ran = {} if tried is None else {"canaries": {"ran": tried.ran, "not_run": tried.idle}}
        print_json({"format": 1, "table": name, "summary": _summary(table), **listed, **ran})
    elif form == "sarif":
        print(json.dumps(sarif(findings), indent=2))
    elif form == "junit":
        print(junit(name, findings))
    elif form == "github":
        print_lines(github_lines(findings))
        write_step_summary(name, findings)
    else:
        print_lines(finding_lines(findings, sys.stdout))
        counts = _summary(table)
        what = (
            ", ".join(f"{counts[key]} {key}" for key in ("kernels", "routes", "architectures"))
            if table
            else "not usable"
        )
        more = f", {len(known)} in the baseline" if known else ""
        print(f"{name}: {what}: {count_text(findings)}{more}")


def _name(path: str | None, overrides: Sequence[str], table: Table | None) -> str:
    """The files that were read: the table, then the overrides over it."""
    if table is None or not table.layers:
        return " + ".join((path or "dispatch.yaml", *overrides))
    return " + ".join(layer.name for layer in table.layers)


def _summary(table: Table | None) -> dict[str, Any]:
    if table is None:
        return {}
    return {
        "kernels": len(table.kernels),
        "routes": len(table.routes),
        "architectures": sum(len(platform.architectures) for platform in table.platforms.values()),
        "digest": table.digest,
        "layers": [{"name": layer.name, "sha256": layer.sha256} for layer in table.layers],
    }
