"""`kerneltable check --deep`: load every kernel and compile all device code, as far as this machine can."""

from __future__ import annotations

import os

from kerneltable.cli.proofs import as_findings
from kerneltable.errors import Finding
from kerneltable.model import Table


def deep_findings(table: Table, *, notes: bool) -> list[Finding]:
    """What loading and compiling finds; what this machine cannot do is a note."""
    from kerneltable.run.checks.deep import construct_all
    from kerneltable.run.checks.deep_code import compile_own, compile_triton

    proofs = [*construct_all(table), *compile_own(table), *compile_triton(table, os.environ)]
    return as_findings(proofs, notes=notes)
