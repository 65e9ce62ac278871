"""The command line: `kerneltable COMMAND`. Exit 0 clean, 1 findings or no kernel, 2 could not answer.

Answers go to stdout, everything else to stderr. Only the module of the named command is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "check": "validate a table and override files",
        "explain": "which kernel a problem gets on a device, and what refuses every other",
        "select": "the chosen kernel alone",
        "show": "the effective table, or a part of it, with the place of every value",
        "schema": "the JSON Schema of tables and overrides with the names of the table, for editors",
        "rule": "what a finding code means and how to correct it",
        "env": "the present machine as the selection sees it",
        "lock": "write down what a table decides, for `check --lock` to hold against",
        "matrix": "scheme x device: which kernel wins which problems; as text, JSON or an HTML page",
        "diff": "which problems get another kernel between two tables, on every chip",
        "run": "run every quantized linear of a checkpoint and hold it against a float64 reference",
        "bench": "time every kernel that fits this device, side by side, checked in the same run",
        "build": "compile device code ahead of time, with or without a GPU",
        "conformance": "run every kernel that fits this device, forced one by one, against the reference",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; argv is without the program's name. Returns the exit code."""
    from kerneltable.cli.streams import NO_ROOM, open_streams

    arguments = list(sys.argv[1:] if argv is None else argv)
    with open_streams():
        try:
            code = _ended(arguments)
            sys.stdout.flush()
        except OSError as error:  # the answer has no room, as in `kerneltable --version > /dev/full`
            print(f"kerneltable: {NO_ROOM}: {error.strerror or error}", file=sys.stderr)
            return 2
        return code


def _ended(arguments: list[str]) -> int:
    """Run one command to its end, also one that somebody or argparse ends early."""
    try:
        return _answer(arguments)
    except KeyboardInterrupt:
        print("kerneltable: interrupted", file=sys.stderr)
        return 130
    except SystemExit as ended:  # argparse: 0 after --help, 2 after a usage error
        return ended.code if isinstance(ended.code, int) else 2


def _answer(arguments: list[str]) -> int:
    from kerneltable.errors import KernelTableError

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from kerneltable import __version__

        print(f"kerneltable {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        return _unknown_command(arguments[0])
    try:
        return _run_in_environment(arguments)
    except KernelTableError as error:
        from kerneltable.cli.output import print_error

        return print_error(error)
    except OSError as error:
        print(f"kerneltable: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _run_in_environment(arguments: list[str]) -> int:
    """Run the command with the compile settings of the environment in force, if it has any."""
    from kerneltable.cli.environment import say_unread, settings_of

    say_unread(os.environ)
    settings = settings_of(os.environ)
    if settings is None:
        return _run(arguments)
    from kerneltable.run.compiling import activated

    with activated(settings):
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    from importlib import import_module

    from kerneltable.cli.parser import Parser

    command = import_module(f"kerneltable.cli.{arguments[0]}")  # a key of COMMANDS, never text from outside
    parser = Parser(prog="kerneltable")
    subparsers = parser.add_subparsers(dest="command", required=True)
    command.add(subparsers)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        return _unknown_argument(arguments[0], unknown[0], subparsers.choices[arguments[0]].format_usage())
    code: int = command.run(args)
    return code


def _unknown_argument(command: str, argument: str, usage: str) -> int:
    from re import findall

    from kerneltable.names import hint

    kind = "option" if argument.startswith("-") else "further argument"
    step = hint(argument.partition("=")[0], findall(r"--[a-z-]+", usage)) if kind == "option" else "see --help"
    print(f"kerneltable {command}: there is no {kind} '{argument[:80]}'; {step}", file=sys.stderr)
    return 2


def _usage() -> str:
    from kerneltable.cli.environment import VARIABLES

    width = max(map(len, COMMANDS))
    wide = max(map(len, VARIABLES))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kerneltable COMMAND [options]",
            "",
            "One validated table decides which kernel computes a quantized linear layer, and says why.",
            "",
            *lines,
            "",
            "kerneltable COMMAND --help   the options of a command",
            "kerneltable --version        the version",
            "",
            "Exit 0: clean, same or answered. 1: findings, or no kernel. 2: could not answer.",
            "",
            "Environment, read by the command line alone:",
            *(f"  {name:<{wide}}  {text}" for name, text in VARIABLES.items()),
        ]
    )


def _unknown_command(name: str) -> int:
    from kerneltable.names import hint

    if name.startswith("-"):
        print(f"kerneltable: the command comes first, then its options; found '{name[:80]}'", file=sys.stderr)
    else:
        print(f"kerneltable: there is no command '{name[:80]}'; {hint(name, COMMANDS)}", file=sys.stderr)
    return 2
