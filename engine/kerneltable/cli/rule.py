"""`kerneltable rule`: what a finding code means, with a bad and a good example."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kerneltable.cli.options import add_format
from kerneltable.cli.output import print_json

if TYPE_CHECKING:
    from kerneltable.cli.options import Subparsers
    from kerneltable.table.rules import Rule


def add(subparsers: Subparsers) -> None:
    """The options of the command."""
    parser = subparsers.add_parser("rule", help="what a finding code means", description=__doc__)
    parser.add_argument("code", metavar="CODE", nargs="?", help="e.g. KT104; without it all codes are listed")
    add_format(parser)


def run(args: Namespace) -> int:
    """Print one rule in full, or the list of all; 2 for an unknown code."""
    from kerneltable.errors import ProblemError
    from kerneltable.names import hint
    from kerneltable.table.rules import rules

    known = rules()
    if args.code is None:
        _print_all(args, list(known.values()))
        return 0
    rule = known.get(args.code.upper())
    if rule is None:
        raise ProblemError(f"there is no rule '{args.code[:40]}'; {hint(args.code.upper(), known)}")
    if args.format == "json":
        print_json({"format": 1, **_as_json(rule)})
    else:
        print("\n".join(_lines(rule)))
    return 0


def _print_all(args: Namespace, known: list[Rule]) -> None:
    if args.format == "json":
        print_json({"format": 1, "rules": [_as_json(rule) for rule in known]})
        return
    for rule in known:
        print(f"{rule.code}  {rule.title}")


def _lines(rule: Rule) -> Iterator[str]:
    yield f"{rule.code} ({rule.severity}): {rule.title}"
    yield from ("", rule.text)
    for name, example in (("bad", rule.bad), ("good", rule.good)):
        if example:
            yield from ("", f"{name}:", *(f"  {line}" for line in example.strip("\n").splitlines()))
    yield from ("", f"way out: {rule.fix}")


def _as_json(rule: Rule) -> dict[str, str]:
    return {name: getattr(rule, name) for name in ("code", "severity", "title", "text", "bad", "good", "fix")}
