"""Options that several commands share, and the table, device and problem that they stand for."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kerneltable.cli.parser import Joined
from kerneltable.errors import ProblemError
from kerneltable.model import Device, Problem, Table
from kerneltable.names import hint

if TYPE_CHECKING:
    from argparse import _ArgumentGroup, _SubParsersAction

    Subparsers = _SubParsersAction[ArgumentParser]

DTYPES = ("bf16", "f16", "f32")
LARGEST_FACTS_FILE = 1 << 20
LONGEST = 1_000_000
"""Of a time limit, in seconds: 11 days."""

HOST = "host"
"""The present machine, where a command takes the name of a device."""


def add_format(parser: ArgumentParser, choices: Sequence[str] = ("text", "json")) -> None:
    """--format: how the answer is written."""
    parser.add_argument("--format", choices=choices, default="text", help="how the answer is written (default: text)")


def add_layers(parser: ArgumentParser) -> None:
    """--table and -f: the files that make the table."""
    parser.add_argument(
        "--table", metavar="FILE", type=named_file, help="the table (default: the one that comes with kerneltable)"
    )
    add_overrides(parser)


def add_overrides(parser: ArgumentParser) -> None:
    """-f: override files, in order."""
    parser.add_argument(
        "-f",
        "--override",
        metavar="FILE",
        type=named_file,
        action="append",
        default=[],
        help="an override file; repeatable, later ones win",
    )
    add_trust(parser)


def add_trust(parser: ArgumentParser) -> None:
    """--allow-insecure-permissions: take override files that others can write."""
    parser.add_argument(
        "--allow-insecure-permissions",
        action="store_true",
        help="take override files that others can write (an override decides which code runs)",
    )


def add_question(parser: ArgumentParser) -> None:
    """The scheme, problem, device and forced kernels of explain and select."""
    parser.add_argument("scheme", metavar="SCHEME", help="a scheme of the table, e.g. fp8_block_w8a8")
    parser.add_argument("--n", type=size, required=True, help="output features")
    parser.add_argument("--k", type=size, required=True, help="input features")
    parser.add_argument("--m", type=size, help="rows (default: unknown, the kernel must take any)")
    parser.add_argument("--input", choices=DTYPES, default="bf16", help="input dtype (default: bf16)")
    parser.add_argument("--output", choices=DTYPES, help="output dtype (default: that of the input)")
    parser.add_argument("--bias", action="store_true", help="the layer has a bias")
    details = parser.add_argument_group("details of the quantization (default: the scheme's first)")
    details.add_argument("--weight-granularity", metavar="NAME", help="tensor, channel or block")
    details.add_argument("--weight-block", metavar="ROWSxCOLUMNS", type=block, help="e.g. 128x128")
    details.add_argument("--weight-scale", metavar="FORMAT", help="f32, bf16 or e8m0")
    details.add_argument("--input-granularity", metavar="NAME", help="tensor, token, block or none")
    details.add_argument("--input-scaling", metavar="NAME", help="dynamic or static")
    details.add_argument("--model", metavar="NAME", help="the checkpoint's name, for errata of some models")
    _add_device(parser)
    forced = parser.add_argument_group("a last layer over the table, for this question alone")
    forced.add_argument("--require", metavar="KERNEL", help="this kernel or none")
    forced.add_argument("--prefer", metavar="KERNEL", help="this kernel first, then the route")
    forced.add_argument("--disable", metavar="KERNEL", action="append", default=[], help="not this kernel; repeatable")
    forced.add_argument("--weight-copies", metavar="COUNT", type=size, help="packed copies of the weights")
    forced.add_argument(
        "--batch-invariant", action="store_true", help="only kernels whose rows are independent; one for every m"
    )
    forced.add_argument("--deterministic", action="store_true", help="only kernels that repeat every bit")


def _add_device(parser: ArgumentParser) -> None:
    where = parser.add_argument_group("device (default: the present machine)")
    which = where.add_mutually_exclusive_group()
    which.add_argument(
        "--device", metavar="NAME",
        help="a device or architecture of the table: h200, sm121, cuda:13.0; host: the present machine",
    )  # fmt: skip
    which.add_argument(
        "--facts", metavar="FILE", type=named_file, help="what `kerneltable env --json` wrote on another machine"
    )
    add_with(where)


def add_with(where: _ArgumentGroup) -> None:
    """--with: what is installed beside what is known to be."""
    where.add_argument(
        "--with", dest="packages", metavar="PACKAGES", action=Joined,
        help="also installed: a comma list of packages and ops, repeatable; or 'all' alone",
    )  # fmt: skip


def size(text: str) -> int:
    """A size on the command line: decimal digits only, at most 2^31 - 1."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31):
        raise ArgumentTypeError(f"a whole number from 0 to {2**31 - 1} was wanted; found '{text[:40]}'")
    return int(text)


def count(text: str) -> int:
    """How many of something, on the command line: decimal digits only, from 1 to 2^31 - 1."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise ArgumentTypeError(f"a whole number from 1 to {2**31 - 1} was wanted; found '{text[:40]}'")
    return int(text)


def named_file(text: str) -> str:
    """The name of a file or folder on the command line; an empty one, as of a variable that is not set, is refused."""
    if not text:
        raise ArgumentTypeError("a name was wanted; found ''; name one, or leave the option out")
    return text


def seconds(text: str) -> float:
    """A time on the command line: a number above 0, at most LONGEST seconds."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= LONGEST:  # nan is neither
        raise ArgumentTypeError(f"seconds above 0 and at most {LONGEST} were wanted; found '{text[:40]}'")
    return found


def block(text: str) -> tuple[int, int]:
    """A scale block on the command line: "128x128"."""
    rows, times, columns = text.lower().partition("x")
    if not times:
        raise ArgumentTypeError(f"two numbers such as 128x128 were wanted; found '{text[:40]}'")
    return size(rows), size(columns)


def check_kernels(names: Iterable[str], table: Table, also: Sequence[str] = ()) -> None:
    """ProblemError with the nearest name for one that is no kernel of the table, nor one of `also`."""
    for name in names:
        if name not in (*table.kernels, *also):
            raise ProblemError(f"there is no kernel {name[:80]!r}; {hint(name, (*table.kernels, *also))}")


def table_of(args: Namespace, layers: Sequence[tuple[str, str]] = ()) -> Table:
    """The table of --table and -f, with layers of text on top; ConfigError with all findings."""
    from kerneltable.table import load_table

    return load_table(args.table, [*args.override, *layers], any_writer=args.allow_insecure_permissions)


def say_unasked(packages: str | None, *tables: Table) -> None:
    """Name on stderr what --with adds and no row, step or denial of these tables asks for: a typo changes nothing."""
    from kerneltable.select.devices import ASSUMED
    from kerneltable.select.environments import all_needs
    from kerneltable.select.versions import distribution

    asked = {distribution(need.name) for table in tables for need in all_needs(table, "packages")} | {*ASSUMED}
    ops = {need.name for table in tables for need in all_needs(table, "ops")}
    for item in dict.fromkeys(part.strip() for part in (packages or "all").split(",")):
        name = item if "::" in item else distribution(item.partition("==")[0])
        if item.lower() != "all" and name not in (ops if "::" in item else asked):
            what = f"--with {item[:100]}: no row asks for this {'op' if '::' in item else 'package'}"
            step = hint(name, ops if "::" in item else asked)
            print(f"kerneltable: {what}, so it changes nothing; {step}", file=sys.stderr)


def question_of(args: Namespace) -> tuple[Table, Device, Problem]:
    """The table with the command line's own layer, the device and the problem that the options describe.

    errors    ConfigError (table, override, an unknown kernel in --require), ProblemError (device, facts, scheme)
    """
    from kerneltable.select.problems import scheme_of

    table = table_of(args)
    scheme_of(table, args.scheme)
    device = _device_of(args, table)
    say_unasked(args.packages, table)
    layer = forced_layer(args, device.platform)
    if layer is not None:
        table = table_of(args, [("command line", layer)])
    _say_absent(args, table, device.platform)
    return table, device, problem_of(args)


def _say_absent(args: Namespace, table: Table, platform: str) -> None:
    """Name on stderr what --disable takes out of a route that does not have it."""
    route = table.routes.get((args.scheme, platform))
    listed = {step.kernel for step in route.steps} if route else set()
    listed |= {choice.kernel for choice in (route.require, route.prefer) if choice} if route else set()
    for kernel in dict.fromkeys(args.disable):
        if kernel not in listed:
            what = f"--disable {kernel}: no step of the route of {args.scheme} on {platform}, so it changes nothing"
            print(f"kerneltable: {what}; {hint(kernel, listed)}", file=sys.stderr)


def problem_of(args: Namespace) -> Problem:
    """The problem of the options; what is not said is None and becomes the scheme's default."""
    return Problem(
        args.scheme,
        n=args.n,
        k=args.k,
        m=args.m,
        input=args.input,
        output=args.output or args.input,
        bias=args.bias,
        weight_granularity=args.weight_granularity,
        weight_block=args.weight_block,
        weight_scale=args.weight_scale,
        input_granularity=args.input_granularity,
        input_scaling=args.input_scaling,
        model=args.model,
    )


def forced_layer(args: Namespace, platform: str) -> str | None:
    """The override text of --require and the options beside it for the question's route, or None without them."""
    verbs = (("require", args.require), ("prefer", args.prefer))
    choice: dict[str, object] = {verb: kernel for verb, kernel in verbs if kernel is not None}
    plans = {name: True for name in ("batch_invariant", "deterministic") if getattr(args, name)}
    plans |= {} if args.weight_copies is None else {"weight_copies": args.weight_copies}
    choice |= {"plans": plans} if plans else {}
    if not (choice or args.disable):
        return None
    layer: dict[str, object] = {"override": 1}
    if choice:
        layer["routes"] = {args.scheme: {platform: choice}}
    if args.disable:
        where = {"platform": platform, "scheme": args.scheme, "reason": "switched off on the command line"}
        layer |= {"allow_empty": True, "disable": [{"kernel": kernel, **where} for kernel in args.disable]}
    return json.dumps(layer)  # JSON is YAML


def _device_of(args: Namespace, table: Table) -> Device:
    from kerneltable.select import with_packages

    if args.facts is not None:
        found = read_facts_file(args.facts, table)
    else:
        found = named_device(HOST if args.device is None else args.device, table)
    return with_packages(found, args.packages) if args.packages is not None else found


def named_device(name: str, table: Table) -> Device:
    """The device that a name of the table stands for, or the present machine for HOST.

    errors    ProblemError for an unknown name
    """
    if name.strip().lower() == HOST:
        from kerneltable.run.probe import current_device

        return current_device(table)
    from kerneltable.select import device

    return device(name, table)


def read_facts_file(path: str, table: Table) -> Device:
    """The device of a facts file; ProblemError when it is too large, no text or no facts."""
    from kerneltable.select.facts import read_facts

    with Path(path).open("rb") as file:
        data = file.read(LARGEST_FACTS_FILE + 1)
    if len(data) > LARGEST_FACTS_FILE:
        raise ProblemError(f"{path}: a facts file has at most {LARGEST_FACTS_FILE} bytes; this one has more")
    try:
        return read_facts(data.decode("utf-8-sig"), table, path)
    except UnicodeDecodeError:
        raise ProblemError(f"{path}: UTF-8 text was wanted; write the file with `kerneltable env --json`") from None
