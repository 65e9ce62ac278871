"""Every code that a finding can carry, explained: `kerneltable rule KT104` prints what stands here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kerneltable.table import rules_lock, rules_names, rules_override, rules_proofs, rules_reading, rules_schema
from kerneltable.table.rule import Rule

__all__ = ["Rule", "rules"]

_PARTS = (rules_reading, rules_schema, rules_names, rules_override, rules_proofs, rules_lock)
_RULES = MappingProxyType({rule.code: rule for part in _PARTS for rule in part.RULES})


def rules() -> Mapping[str, Rule]:
    """Every rule by its code, in the order of the codes."""
    return _RULES
