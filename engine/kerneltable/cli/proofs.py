"""Proofs as findings: what `kerneltable.select` proved gets its severity, its source line and its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from kerneltable.errors import Finding
from kerneltable.model import Table

if TYPE_CHECKING:
    from kerneltable.select.survey import Proof


def with_proofs(table: Table, findings: Sequence[Finding], options: str, *, notes: bool) -> tuple[Finding, ...]:
    """The findings of reading and those of the proofs, in the order of the files.

    options   of the witness commands: the table and override files that are checked
    notes     also the proofs that are only worth knowing
    """
    from kerneltable.select.lint import prove

    return merged(table, findings, as_findings(prove(table, options), notes=notes))


def as_findings(proofs: Iterable[Proof], *, notes: bool) -> list[Finding]:
    """Each proof with the severity of its rule; without notes those of severity "note" are left out."""
    from kerneltable.table.report import dotted
    from kerneltable.table.rules import rules

    known = rules()
    return [
        Finding(
            proof.code,
            known[proof.code].severity,
            proof.message,
            proof.mark,
            dotted(proof.path),
            max(1, proof.length),
            proof.help,
            witness=proof.witness,
        )
        for proof in proofs
        if notes or known[proof.code].severity != "note"
    ]


def merged(table: Table, findings: Iterable[Finding], more: Iterable[Finding]) -> tuple[Finding, ...]:
    """All findings in the order of the table's layers, each with its source line."""
    from kerneltable.table.report import Report

    report = Report()
    report.findings = [*findings, *more]
    return report.finish({layer.name: layer.text for layer in table.layers})


def file_options(table: str | None, overrides: Iterable[str]) -> str:
    """The files as options of `explain` and its like: "--table my.yaml -f deploy.yaml"."""
    words = [f"--table {quote(table)}"] if table else []
    return " ".join([*words, *(f"-f {quote(override)}" for override in overrides)])
