"""Pickling and copying of frozen values that hold read-only mappings."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any


def reduce(value: Any) -> tuple[Any, ...]:
    """For pickle and copy: a value by its fields; a read-only mapping goes as a dict and comes back read-only."""
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    sealed = tuple(name for name, content in fields.items() if isinstance(content, MappingProxyType))
    return _restore, (type(value), fields | {name: dict(fields[name]) for name in sealed}, sealed)


def _restore(kind: Any, fields: dict[str, Any], sealed: tuple[str, ...]) -> Any:
    return kind(**fields | {name: MappingProxyType(fields[name]) for name in sealed})
