"""A matrix as JSON, and as one HTML page that asks nothing of the network."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kerneltable.select import explain, select

if TYPE_CHECKING:
    from kerneltable.model import Table
    from kerneltable.select.matrix import Matrix, Row, Won

TEMPLATE = "matrix.html"
DATA = "/*DATA*/"


def as_json(table: Table, found: Matrix, dtypes: str) -> dict[str, Any]:
    """The matrix as JSON-able values; each winner has one problem and what refuses the other kernels for it."""
    return {
        "format": 1,
        "table": _table_json(table),
        "dtypes": dtypes,
        "kernels": {
            kernel.id: {"kind": kernel.kind, "status": kernel.status, "summary": kernel.summary, "why": kernel.why}
            for kernel in table.kernels.values()
        },
        "columns": [
            {"scheme": c.scheme, "summary": table.schemes[c.scheme].summary, "label": c.label,
             "weight": list(c.weights), "input": list(c.takens)}
            for c in found.columns
        ],
        "rows": [
            {"platform": row.device.platform, "architecture": row.device.architecture, "devices": list(row.names),
             "cells": [[_won_json(table, row, won) for won in cell] for cell in cells]}
            for row, cells in zip(found.rows, found.cells, strict=True)
        ],
    }  # fmt: skip


def page(table: Table, found: Matrix, dtypes: str) -> str:
    """The HTML page: the template of this folder with the data in it."""
    data = as_json(table, found, dtypes)
    said: dict[str, int] = {}
    for row in data["rows"]:
        for won in (won for cell in row["cells"] for won in cell):
            del won["boxes"]
            text = json.dumps({"problem": won.pop("problem_text"), "candidates": won.pop("candidates")})
            won["told"] = said.setdefault(text, len(said))
            del won["problem"]
    data["told"] = [json.loads(text) for text in said]
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return files("kerneltable.cli").joinpath(TEMPLATE).read_text(encoding="utf-8").replace(DATA, text)


def _table_json(table: Table) -> dict[str, Any]:
    layers = [{"name": layer.name, "sha256": layer.sha256} for layer in table.layers]
    return {"digest": table.digest, "layers": layers}


def _won_json(table: Table, row: Row, won: Won) -> dict[str, Any]:
    selection = select(table, row.device, won.problem)
    answer = explain.as_json(table, selection)
    problem = {name: value for name, value in answer["problem"].items() if value is not None}
    return {
        "kernel": won.kernel,
        "kind": won.kind,
        "region": won.region,
        "boxes": list(won.boxes),
        "problem": problem,
        "problem_text": explain.text(table, selection)[0],
        "candidates": answer["candidates"],
    }
