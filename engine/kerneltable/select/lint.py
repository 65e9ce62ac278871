"""What `check` proves about a table by exact set algebra; each proof comes with a problem that shows it.

The severity and the explanation of a code stand in kerneltable.table.rules. A table that breaks a rule of reading is
never proved about: it cannot be used at all.
"""

from __future__ import annotations

from kerneltable.model import Table
from kerneltable.select.lint_cover import prove_cover
from kerneltable.select.lint_errata import prove_errata
from kerneltable.select.lint_gaps import prove_gaps
from kerneltable.select.lint_rows import prove_layouts, prove_places
from kerneltable.select.lint_steps import prove_steps
from kerneltable.select.survey import Proof, survey_of

__all__ = ["Proof", "prove"]


def prove(table: Table, more: str = "") -> tuple[Proof, ...]:
    """Every proof about a table: KT501 to KT509, in the order of the routes.

    more   options for the witness commands, such as "-f deploy.yaml"
    """
    survey = survey_of(table, more)
    return (
        *prove_steps(survey),
        *prove_gaps(survey),
        *prove_cover(survey),
        *prove_places(survey),
        *prove_layouts(survey),
        *prove_errata(survey),
    )
