"""A few mutants of the table through the fast ring; `make mutants` runs 600."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from mutate import decides_the_same, shipped_data
from mutations import DTYPES, chosen, mutants
from ring import Ring

DATA = shipped_data()
ALL = mutants(DATA)
FEW = chosen(ALL, 1, least=2)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Ring:
    return Ring(tmp_path_factory.mktemp("mutants"))


def test_the_table_itself_passes_the_ring(ring: Ring) -> None:
    assert ring.killed_by(DATA) is None


def test_every_operator_makes_mutants_and_none_is_the_table() -> None:
    operators = {mutant.operator for mutant in ALL}
    wanted = {"swap", "drop", "off by one", "comparison", "rename", "dtype", "flip", "delete constraint"}
    assert operators == wanted
    assert len(ALL) > 1500
    assert all(mutant.before != mutant.after for mutant in ALL)
    assert len({mutant.name for mutant in FEW}) == len(FEW) >= len(wanted)
    assert all(value not in others for value, others in DTYPES.items())


@pytest.mark.parametrize("mutant", FEW, ids=lambda mutant: mutant.name[:80])
def test_a_mutant_is_killed_or_decides_the_same(ring: Ring, mutant) -> None:
    changed = mutant.of(DATA)
    assert changed != DATA
    assert ring.killed_by(changed) or decides_the_same(ring.table_of(DATA), ring.table_of(changed))
