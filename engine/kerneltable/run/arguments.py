"""What a caller gives from_tensors, checked for its kind before a table or a tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kerneltable.errors import LayerError, ProblemError
from kerneltable.model import Scheme, Table
from kerneltable.run.transforms import check_readable


def checked_table(table: object, name: str) -> Table | None:
    """The table, None for none. errors: ProblemError for anything else, such as a path."""
    if table is None or isinstance(table, Table):
        return table
    raise ProblemError(
        f"{name}: table must be a Table, or None for the shipped one; found {_shown(table)}; "
        "read a file once with kerneltable.load_table(path), and give what it returns"
    )


def scheme_named(scheme: object, table: Table, name: str) -> Scheme:
    """The scheme of a table. errors: ProblemError for a name that it does not have, or no name at all."""
    found = table.schemes.get(scheme) if isinstance(scheme, str) else None
    if found is None:
        said = (
            f"unknown scheme '{scheme[:200]}'"
            if isinstance(scheme, str)
            else f"scheme must be a name; found {_shown(scheme)}"
        )
        raise ProblemError(f"{name}: {said}; the table has {', '.join(sorted(table.schemes))}")
    return found


def checked_tensors(tensors: object, name: str) -> Mapping[str, Any]:
    """Name -> plain tensor, or None for one that is absent. errors: LayerError for anything else."""
    if not isinstance(tensors, Mapping) or not all(isinstance(key, str) for key in tensors):
        raise LayerError(
            f"{name}: tensors must map names to tensors; found {_shown(tensors)}; "
            "give them as the checkpoint has them: {'weight': ..., 'weight_scale': ...}"
        )
    check_readable(tensors, name)
    return tensors


def check_answers(answers: Mapping[str, object], name: str) -> None:
    """LayerError unless each is True or False: any other value would count as one of them."""
    for key, answer in answers.items():
        if not isinstance(answer, bool):
            raise LayerError(f"{name}: {key} must be True or False; found {_shown(answer)}; give one of them")


def _shown(value: object) -> str:
    """A value in few words: what was written, or its type where that may be long."""
    return repr(value)[:200] if isinstance(value, (str, int, float, tuple, list)) else type(value).__name__
