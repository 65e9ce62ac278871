"""Several devices on the command line: names of the table, facts files of a fleet, or all that the table knows."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from kerneltable.cli.options import add_with, named_device, read_facts_file
from kerneltable.errors import ProblemError
from kerneltable.model import Device, Table


def add_devices(parser: ArgumentParser, *, default: str = "every device of the table") -> None:
    """--devices, --facts and --with; default says what is meant when neither of the first two is given."""
    where = parser.add_argument_group(f"devices (default: {default})")
    where.add_argument(
        "--devices", metavar="NAMES", action="append", default=[],
        help="a comma list of names: a100,dgx-spark,sm121; host: the present machine",
    )  # fmt: skip
    where.add_argument(
        "--facts", metavar="PATH", action="append", default=[],
        help="what `kerneltable env --json` wrote on another machine, or a folder of such files; repeatable",
    )  # fmt: skip
    add_with(where)


def devices_of(args: Namespace, table: Table) -> list[Device]:
    """The devices that --devices and --facts name; without both, every device name of the table.

    errors    ProblemError for an unknown name, an option without any, a facts file that cannot be read, a folder
              without one
    """
    from kerneltable.select import device, with_packages

    for part in args.devices:
        if not part.replace(",", "").strip():
            raise ProblemError(f"--devices: wanted names such as a100,dgx-spark; found {part[:40]!r}; or leave it out")
    names = [name.strip() for part in args.devices for name in part.split(",") if name.strip()]
    found = [named_device(name, table) for name in names]
    for path in args.facts:
        found += [read_facts_file(file, table) for file in _files(path)]
    if not (names or args.facts):
        found = [device(name, table) for name in every_name(table)]
    return [with_packages(one, args.packages) for one in found] if args.packages is not None else found


def every_name(table: Table) -> list[str]:
    """Every device name of the table, and each architecture that no name stands for, as "cuda:h200"."""
    names = []
    for platform in table.platforms.values():
        unnamed = [chip for chip in platform.architectures if chip not in platform.devices.values()]
        names += [f"{platform.name}:{name}" for name in (*platform.devices, *unnamed)]
    return names


def _files(path: str) -> list[str]:
    if not path:
        raise ProblemError("--facts: wanted a file or a folder; found ''; write one with `kerneltable env --json`")
    if not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).glob("*.json"))
    if not files:
        raise ProblemError(f"{path}: no facts file (*.json) is in this folder; write one with `kerneltable env --json`")
    return files
