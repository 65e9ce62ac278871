"""The golden files say what the shipped table decides and what its rows take."""

from __future__ import annotations

import pytest
import regenerate

from kerneltable.table import load_table


@pytest.mark.parametrize("place", range(3), ids=["rows", "selections", "selections_with_all"])
def test_the_golden_files_are_up_to_date(place: int) -> None:
    file, wanted = list(regenerate.written(load_table()))[place]
    assert file.read_text(encoding="utf-8") == wanted, "run: python tests/golden/regenerate.py"


def test_every_device_name_and_scheme_is_in_the_golden_selections() -> None:
    table = load_table()
    text = regenerate.FILE.read_text(encoding="utf-8")
    for scheme in table.schemes:
        assert scheme in regenerate.VARIANTS
        assert f"\n{scheme} (defaults)\n" in text
    for platform in table.platforms.values():
        for name in platform.devices:
            blocks = sum(map(len, regenerate.VARIANTS.values()))
            assert text.count(f"\n  {platform.name}:{name} ") == blocks


def test_no_golden_question_is_left_without_a_kernel() -> None:
    for file in (regenerate.FILE, regenerate.FILE_WITH_ALL):
        assert "NONE" not in file.read_text(encoding="utf-8")
