"""Rows, chips and errata that an override changes: what is free, what is refused, and where a message points."""

from __future__ import annotations

import pytest
from table_samples import codes, laid_over


@pytest.mark.parametrize("status", ["unverified", "deprecated"])
def test_a_row_that_takes_its_status_back_is_verified_nowhere(status: str) -> None:
    table, findings = laid_over(f"kernels: {{reference: {{status: {status}}}}}\n")
    assert findings == ()
    assert table is not None
    assert (table.kernels["reference"].status, table.kernels["reference"].verified) == (status, ())
    assert ("kernels", "reference", "verified") not in table.marks


def test_a_row_that_keeps_its_status_keeps_its_devices_and_new_ones_need_that_status() -> None:
    table, _ = laid_over("kernels: {reference: {status: verified}}\n")
    assert table is not None
    assert [v.device for v in table.kernels["reference"].verified] == ["h200"]
    where = 'verified: [{device: h200, date: "2026-11-20"}]'
    table, findings = laid_over(f"kernels: {{reference: {{status: unverified, {where}}}}}\n")
    assert (table, codes(findings), findings[0].mark.file) == (None, ["KT209"], "a.yaml")
