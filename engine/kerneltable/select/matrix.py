"""The whole table at a glance: scheme x device -> which kernel wins which problems, by the algebra of regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kerneltable.model import Device, Problem, Table
from kerneltable.select.boxes import Box
from kerneltable.select.matrix_columns import Column, columns_of, merged_label
from kerneltable.select.problems import scheme_of
from kerneltable.select.region_text import box_json, region_text, whole
from kerneltable.select.regions import Winner, simplest_problem, winners
from kerneltable.select.space import Space, space_of


@dataclass(frozen=True, slots=True)
class Won:
    """A kernel and the problems of a cell that it wins.

    kernel   None for the problems that nothing takes
    region   these problems in one line; "every problem" when they are all of the cell's
    boxes    the same as JSON-able values, one object a box
    problem  the simplest of them, to show the refusals of the others with `select`
    """

    kernel: str | None
    kind: str
    region: str
    boxes: tuple[dict[str, Any], ...]
    problem: Problem


@dataclass(frozen=True, slots=True)
class Row:
    """One or more device names of one architecture."""

    names: tuple[str, ...]
    device: Device


@dataclass(frozen=True, slots=True)
class Matrix:
    """cells[row][column] holds who wins what, in the order of the route; together every problem of the column."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[tuple[tuple[Won, ...], ...], ...]


def matrix(
    table: Table,
    rows: Sequence[Row],
    *,
    schemes: Iterable[str] | None = None,
    input: str = "bf16",
    output: str = "bf16",
) -> Matrix:
    """Who wins what, for every scheme with every granularity of weight and input, on every row.

    schemes  None is all of the table
    input    dtype of the layer's input, output that of its result: bf16, f16 or f32
    returns  granularities with the same answers on every row share a column
    errors   ProblemError for a scheme that the table does not have
    """
    columns: list[Column] = []
    by_column: list[tuple[tuple[Won, ...], ...]] = []
    for scheme in table.schemes if schemes is None else schemes:
        space = space_of(scheme_of(table, scheme).name, table)
        groups: dict[tuple[tuple[tuple[str | None, str], ...], ...], list[tuple[Column, Any]]] = {}
        every = list(columns_of(table, space, input=input, output=output))
        for column in every:
            won = tuple(_cell(table, row.device, space, column.within) for row in rows)
            answers = tuple(tuple((one.kernel, one.region) for one in cell) for cell in won)
            groups.setdefault(answers, []).append((column, won))
        for alike in groups.values():
            columns.append(merged_label([column for column, _ in alike], every))
            by_column.append(alike[0][1])
    cells = tuple(tuple(by_column[c][r] for c in range(len(columns))) for r in range(len(rows)))
    return Matrix(tuple(columns), tuple(rows), cells)


def rows_of(table: Table, devices: Iterable[Device], *, unknown: bool = False) -> tuple[Row, ...]:
    """Devices with the same answers in one row each: same platform, chip and packages; platforms as in the table.

    devices   one on a platform that the table lacks stands last, and nothing serves it
    unknown   also a row for a chip of each platform that the table does not describe
    """
    found: dict[Device, list[str]] = {}
    for device in devices:
        name = device.name.rpartition(":")[2]
        found.setdefault(_nameless(device), []).append(name)
    rows = [Row(tuple(names), device) for device, names in found.items()]
    if unknown:
        seen = {row.device.platform: row.device for row in rows}
        rows += [
            Row(("unknown chip",), _unknown(table, seen[platform])) for platform in table.platforms if platform in seen
        ]
    rank = {platform: place for place, platform in enumerate(table.platforms)}
    return tuple(sorted(rows, key=lambda row: rank.get(row.device.platform, len(rank))))


def _nameless(device: Device) -> Device:
    return Device(
        device.platform, device.architecture, "", device.capability, device.packages, device.ops, device.assume_all
    )


def _unknown(table: Table, like: Device) -> Device:
    """A chip of the same platform that the table does not describe, newer than all that have a capability."""
    chips = table.platforms[like.platform].architectures.values()
    newest = max((chip.capability for chip in chips if chip.capability is not None), default=None)
    capability = None if newest is None else (newest[0] + 1, 0)
    return Device(like.platform, None, "", capability, like.packages, like.ops, like.assume_all)


def _cell(table: Table, device: Device, space: Space, within: Box) -> tuple[Won, ...]:
    return tuple(_won(table, space, winner, within) for winner in winners(table, device, space, within))


def _won(table: Table, space: Space, winner: Winner, within: Box) -> Won:
    kernel = winner.kernel
    ordinary = tuple(a & b for a, b in zip(within, whole(space, table), strict=True))
    return Won(
        kernel,
        "none" if kernel is None else table.kernels[kernel].kind,
        region_text(space, winner.boxes, ordinary),
        tuple(box_json(space, box, ordinary) for box in winner.boxes),
        simplest_problem(space, winner.boxes),
    )
