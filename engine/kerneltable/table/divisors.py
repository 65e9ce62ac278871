"""How many sets of sizes the multiples of a scheme tell apart: bounded, so that every proof takes a bounded time."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltable.model.predicates import MOST_MULTIPLES, common_multiples
from kerneltable.table.merge import Merged, all_routes, kernel_of
from kerneltable.table.names import Names, number
from kerneltable.table.node import Node
from kerneltable.table.report import Report, shown


def check_divisors(merged: Merged, names: Names, report: Report) -> None:
    """Of each scheme and size the first `multiple_of` that makes too many sets; those of later layers come last."""
    for scheme in names.schemes:
        for size in ("m", "n", "k"):
            nodes = sorted(_asked(merged, names, scheme, size), key=lambda node: report.rank(node.mark))
            found: frozenset[int] = frozenset({1})
            for node in nodes:
                found = common_multiples(found, number(node) or 1)
                if len(found) > MOST_MULTIPLES:
                    _say(report, scheme, size, node, len({number(other) for other in nodes}))
                    break


def _asked(merged: Merged, names: Names, scheme: str, size: str) -> Iterator[Node]:
    """Every `multiple_of` of one size that can bear on a problem of the scheme."""
    errata = merged.root.at("errata")
    steps = [step for (name, _), route in all_routes(merged.root).items() if name == scheme for step in route.items()]
    kernels = dict.fromkeys(kernel_of(step) or "" for step in steps)
    rows = [names.kernels[kernel].at("accepts", size) for kernel in kernels if kernel in names.kernels]
    denials = [row for row in (errata.items() if errata else ()) if (row.at("deny") or row).value in kernels]
    for limits in (*rows, *(step.at("when", size) for step in (*denials, *steps))):
        node = None if limits is None else limits.at("multiple_of")
        if node is not None:
            yield node


def _say(report: Report, scheme: str, size: str, node: Node, divisors: int) -> None:
    message = (
        f"scheme {shown(scheme)}: the {divisors} different multiples of {size} make more than {MOST_MULTIPLES} sets"
    )
    help = f"use numbers that divide each other, or fewer; from {node.value} on it is too many"
    report.add("KT335", message, node.mark, path=("schemes", scheme), length=node.length, help=help)
