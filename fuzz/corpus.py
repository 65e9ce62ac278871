"""The fixed corpus: every truncation and 2,000 byte flips of the shipped table, each loaded.

python fuzz/corpus.py [--every 1] [--flips 2000]
Every input is answered by a table or by findings: no foreign exception, under 1 s and 200 MB, and no truncation that
says something else than the whole table is taken without a word. Exit 0 when all of that holds.
"""

from __future__ import annotations

import random
import resource
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "engine"))
SECONDS = 1.0
MEGABYTES = 200


@dataclass(slots=True)
class Outcome:
    """What became of the inputs. slowest is in seconds of processor time, largest in MB of this process."""

    inputs: int = 0
    refused: int = 0
    foreign: int = 0
    silent: int = 0
    slowest: float = 0.0
    largest: float = 0.0

    @property
    def good(self) -> bool:
        return not (self.foreign or self.silent) and self.slowest < SECONDS and self.largest < MEGABYTES


def truncations(data: bytes, every: int) -> Iterator[bytes]:
    """The table cut after 0, every, 2 * every, ... bytes."""
    return (data[:end] for end in range(0, len(data), every))


def flips(data: bytes, count: int, seed: int = 20261121) -> Iterator[bytes]:
    """The table with one bit of one byte turned, at random places that are the same each time."""
    chance = random.Random(seed)
    for _ in range(count):
        at = chance.randrange(len(data))
        yield data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def tried(inputs: Iterable[bytes], whole: bytes | None = None) -> Outcome:
    """Load each input.

    whole   given for truncations: a prefix that loads without a finding must mean what the whole means
    """
    from kerneltable.table.load import read

    meaning = None if whole is None else _meaning(whole)
    outcome = Outcome()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.yaml"
        for data in inputs:
            path.write_bytes(data)
            start = process_time()
            try:
                table, findings = read(path, ())
            except Exception as error:
                outcome.foreign += 1
                print(f"foreign: {error!r} for {data[-60:]!r}", file=sys.stderr)
                continue
            outcome.slowest = max(outcome.slowest, process_time() - start)
            outcome.inputs += 1
            outcome.refused += table is None
            if whole is not None and table is not None and not findings and _meaning(data) != meaning:
                outcome.silent += 1
    outcome.largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome


def _meaning(data: bytes) -> object:
    from kerneltable.table.nodes import read_nodes
    from kerneltable.table.report import Report

    node = read_nodes(data.decode(), "table.yaml", Report())
    return None if node is None else node.plain()


def main() -> int:
    """Try both kinds and say what became of them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--flips", type=int, default=2000)
    args = parser.parse_args()
    data = (ROOT / "dispatch.yaml").read_bytes()
    cut = tried(truncations(data, args.every), data)
    flipped = tried(flips(data, args.flips))
    for name, outcome in (("truncations", cut), ("byte flips", flipped)):
        print(
            f"{name}: {outcome.inputs} inputs, {outcome.refused} refused, {outcome.foreign} foreign exceptions, "
            f"{outcome.silent} silent, slowest {outcome.slowest:.2f} s, at most {outcome.largest:.0f} MB"
        )
    return 0 if cut.good and flipped.good else 1


if __name__ == "__main__":
    sys.exit(main())
