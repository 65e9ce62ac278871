"""Table layers that installed packages bring: found by their entry point, read without importing a package.

A package announces `NAME = "package.folder"` in the group `kerneltable.tables`; the folder holds kerneltable.yaml, an
override file with the rows and orders of its kernels. A layer is data: nothing of the package runs.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from kerneltable.table.report import shown

GROUP = "kerneltable.tables"
FILE = "kerneltable.yaml"


def plugin_files() -> tuple[str, ...]:
    """The layer files of installed packages, sorted by the package's name, then the entry point's.

    returns  paths as they will show in marks; one that is not there is returned too, and reading it is a finding
    """
    announced = sorted(entry_points(group=GROUP), key=lambda entry: (_owner(entry), entry.name))
    return tuple(dict.fromkeys(_file_of(entry) for entry in announced))


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name.lower() if entry.dist is not None else ""


def _file_of(entry: EntryPoint) -> str:
    """The file in the folder that an entry point names; only the top-level package is looked up, never imported."""
    top, *rest = entry.value.split(":")[0].strip().split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    roots = list(spec.submodule_search_locations or ()) if spec else []
    places = [Path(root).joinpath(*rest, FILE) for root in roots]
    missing = Path(f"{_owner(entry) or 'package'}:{shown(entry.value)}") / FILE
    return str(next((place for place in places if place.is_file()), places[0] if places else missing))
