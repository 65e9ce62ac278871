"""Make about 600 mutants of dispatch.yaml and report which the fast ring kills.

python tests/mutants/mutate.py [--count 600]
A survivor is held against the table by `diff`, which is exact: it decides the same on every chip, with nothing, one
package or everything installed, or it does not. docs/hard-cases.md says why such mutants exist.
Exit 0 when at least 95 % are killed and every survivor decides the same.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "tests" / "golden")]

from mutations import Mutant, chosen, mutants  # noqa: E402
from ring import STAGES, Ring  # noqa: E402

from kerneltable.model import Needs, Table  # noqa: E402
from kerneltable.select.diff import diff, every_device  # noqa: E402
from kerneltable.table.nodes import read_nodes  # noqa: E402
from kerneltable.table.report import Report  # noqa: E402

ENOUGH = 0.95


def shipped_data() -> dict[str, Any]:
    """The shipped table as plain data."""
    node = read_nodes((ROOT / "dispatch.yaml").read_text(encoding="utf-8"), "dispatch.yaml", Report())
    assert node is not None
    plain: Any = node.plain()
    return dict(plain)


def decides_the_same(one: Table, other: Table) -> bool:
    """Whether no problem gets another kernel, on any chip, with torch alone, one more package, or everything."""
    packages = {need.name for row in one.kernels.values() for need in row.needs if isinstance(need, Needs)}
    installed: list[dict[str, Any]] = [{"packages": dict.fromkeys(("torch", name))} for name in sorted(packages)]
    for more in ({"packages": {"torch": None}}, *installed, {"assume_all": True}):
        pairs = [(replace(mine, **more), replace(theirs, **more)) for mine, theirs in every_device(one, other)]
        if diff(one, other, pairs):
            return False
    return True


def main() -> int:
    """Run, print, judge."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    args = parser.parse_args()
    data = shipped_data()
    picked = chosen(mutants(data), args.count)
    start = perf_counter()
    with TemporaryDirectory() as folder:
        ring = Ring(Path(folder))
        objection = ring.killed_by(data)
        if objection is not None:
            print(f"the table itself is refused by stage {objection}; run `make golden` or correct it", file=sys.stderr)
            return 2
        verdicts = [(mutant, ring.killed_by(mutant.of(data))) for mutant in picked]
        seconds = perf_counter() - start
        whole = ring.table_of(data)
        same = {m.name: decides_the_same(whole, ring.table_of(m.of(data))) for m, stage in verdicts if stage is None}
    return report(verdicts, same, seconds)


def report(verdicts: list[tuple[Mutant, str | None]], same: dict[str, bool], seconds: float) -> int:
    """Print what was killed by which stage and who survived; 0 when that is good enough."""
    counts = Counter((mutant.operator, stage) for mutant, stage in verdicts)
    print(f"{'operator':<20}{'mutants':>8}" + "".join(f"{stage:>12}" for stage in (*STAGES, "alive")))
    for operator in dict.fromkeys(mutant.operator for mutant, _ in verdicts):
        total = sum(n for (name, _), n in counts.items() if name == operator)
        line = "".join(f"{counts[operator, stage]:>12}" for stage in (*STAGES, None))
        print(f"{operator:<20}{total:>8}{line}")
    alive = [mutant for mutant, stage in verdicts if stage is None]
    killed = len(verdicts) - len(alive)
    print(f"{killed} of {len(verdicts)} killed, {100 * killed / len(verdicts):.1f} %, in {seconds:.0f} s")
    for mutant in alive:
        print(f"alive: {mutant.name}  [{'decides the same' if same[mutant.name] else 'DECIDES OTHERWISE'}]")
    return 0 if killed >= ENOUGH * len(verdicts) and all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
