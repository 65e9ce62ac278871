"""An Engine: a table in force, read again on request while threads select, and the layers bound through it.

A reload validates completely and then swaps one reference. A file that is bad leaves the last good table in force.
Layers stay on their kernels until they are bound again; until then they are listed as stale.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from kerneltable.errors import ConfigError, Finding, KernelTableError
from kerneltable.model import Device, Problem, Selection, Table
from kerneltable.select.select import select
from kerneltable.table import check_table, load_table
from kerneltable.table.load import each_override

if TYPE_CHECKING:
    from kerneltable.run.bound_layer import BoundLayer
    from kerneltable.run.linear import QuantLinear

Files = str | os.PathLike[str] | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reload:
    """What a reload came to.

    ok        False when the files cannot be used: the last good table stays in force
    changed   True when another table is in force now
    digest    of the table in force
    findings  what the files were found to be, errors and warnings
    stale     names of the bound layers that another table decided for
    """

    ok: bool
    changed: bool
    digest: str
    findings: tuple[Finding, ...]
    stale: tuple[str, ...]

    def __str__(self) -> str:
        if not self.ok:
            first = next((f for f in self.findings if f.severity == "error"), None)
            why = f"{first.mark}: {first.message}" if first is not None else "it cannot be read"
            return f"reload refused, table {self.digest[:12]} stays in force: {why}"
        stale = f"; {len(self.stale)} bound layers are stale until they are bound again" if self.stale else ""
        return f"table {self.digest[:12]} is {'now' if self.changed else 'still'} in force{stale}"


class Engine:
    """A table with its overrides, in force for many threads at once; see `reload`."""

    def __init__(
        self,
        table: str | os.PathLike[str] | None = None,
        overrides: Iterable[Files] | str | os.PathLike[str] = (),
        *,
        plugins: bool = True,
    ) -> None:
        """Read the files a first time.

        table      a table file; None is the table that comes with kerneltable
        overrides  files, read again at each reload, or (name, text) pairs; later ones win; one path may stand alone
        plugins    lay what installed packages bring over the shipped table
        errors     ConfigError with every finding, ProblemError for overrides that are no list
        """
        self._path = table
        self._overrides = tuple(each_override(overrides))
        self._plugins = plugins
        self._reading, self._tracking = threading.Lock(), threading.Lock()
        self._layers: WeakSet[BoundLayer] = WeakSet()
        self._table = load_table(table, self._overrides, plugins=plugins)

    @property
    def table(self) -> Table:
        """The table in force. Hold on to it to ask several questions of one and the same."""
        return self._table

    @property
    def digest(self) -> str:
        """SHA-256 of the table in force: equal on all ranks of a job, or they would not decide alike."""
        return self._table.digest

    def select(self, device: Device | str, problem: Problem) -> Selection:
        """The choice of the table in force for a problem on a device; errors as `kerneltable.select`."""
        return select(self._table, device, problem)

    def reload(self) -> Reload:
        """Read the files again, check everything, and put the new table in force; one reload at a time.

        returns   never raises for what the files hold: ok is False then, and nothing has changed
        """
        with self._reading:
            fresh, findings = self._read()
            changed = fresh is not None and fresh.digest != self._table.digest
            if fresh is not None and changed:
                self._table = fresh
            stale = tuple(layer.name for layer in self.stale())
            found = Reload(fresh is not None, changed, self._table.digest, findings, stale)
        level = logging.ERROR if not found.ok else logging.INFO if changed else logging.DEBUG
        logging.getLogger("kerneltable").log(level, "%s", found)
        return found

    # --- Layers -----------------------------------------------------------------------------------------------------

    def linear(self, scheme: str, tensors: Mapping[str, Any], bias: Any = None, **more: Any) -> QuantLinear:
        """A layer bound by the table in force and tracked; arguments and errors as QuantLinear.from_tensors."""
        from kerneltable.run.linear import QuantLinear

        layer = QuantLinear.from_tensors(scheme, tensors, bias, self._table, **more)
        self.track([layer])
        return layer

    def track(self, layers: Iterable[BoundLayer]) -> None:
        """List these layers as stale too once another table is in force, e.g. what `load_linears` gave."""
        for layer in layers:
            with self._tracking:
                self._layers.add(layer)

    def stale(self) -> tuple[BoundLayer, ...]:
        """The tracked layers that another table than the one in force decided for, by name."""
        digest = self._table.digest
        with self._tracking:
            layers = tuple(self._layers)
        found = [layer for layer in layers if layer.table.digest != digest]
        return tuple(sorted(found, key=lambda layer: layer.name))

    def rebind(self) -> tuple[BoundLayer, ...]:
        """Bind the stale layers by the table in force; calls that run meanwhile finish with the old kernels.

        returns  the layers that are still stale, because the new table has no kernel for them, or no memory was left to
                 pack them again: the log says why
        """
        table = self._table
        for layer in self.stale():
            try:
                layer.rebind(table)
            except Exception as error:  # the others are to be bound all the same
                why = error if isinstance(error, KernelTableError) else f"{type(error).__name__}: {error}"
                logging.getLogger("kerneltable").error("%s stays on its kernel: %s", layer.name, why)
        return self.stale()

    def _read(self) -> tuple[Table | None, tuple[Finding, ...]]:
        try:
            return check_table(self._path, self._overrides, plugins=self._plugins)
        except ConfigError as error:  # the installation itself is broken
            return None, error.findings
        except OSError as error:
            logging.getLogger("kerneltable").error("%s: %s", error.filename, error.strerror)
            return None, ()
