"""Kernels, routes, denials, and the table that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kerneltable.model.chips import Platform
from kerneltable.model.copying import reduce
from kerneltable.model.marks import Mark
from kerneltable.model.predicates import Predicate
from kerneltable.model.problems import Scheme

CHECKPOINT = "checkpoint"
"""The layout of the checkpoint's own tensors: a layer keeps them anyway, so kernels of this layout cost no copy."""


@dataclass(frozen=True, slots=True)
class RunsOn:
    """Where a kernel runs on one platform. portable code may also run on architectures nobody has described yet."""

    platform: str
    portable: bool
    predicates: tuple[Predicate, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a kernel rounds. accumulator is a key of formats.ACCUMULATORS, which states its error bound."""

    accumulator: str
    deterministic: bool
    batch_invariant: bool
    mark: Mark


@dataclass(frozen=True, slots=True)
class Verified:
    """A device on which this kernel ran within its bound, and when (ISO date)."""

    device: str
    date: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the table.

    parameters   constructor parameter names, in the kernel's own spelling
    kind         native | weight_only | emulation | reference
    status       verified | unverified | deprecated
    """

    id: str
    summary: str
    parameters: tuple[str, ...]
    runs_on: Mapping[str, RunsOn]
    needs: tuple[Predicate, ...]
    accepts: tuple[Predicate, ...]
    layout: str
    numerics: Numerics
    kind: str
    status: str
    verified: tuple[Verified, ...]
    why: str
    mark: Mark

    __reduce__ = reduce


@dataclass(frozen=True, slots=True)
class Step:
    """A place in a route; `when` limits the step, not the kernel."""

    kernel: str
    when: tuple[Predicate, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel named by a deployment: `require` (it or an error), `prefer` (it first, then the route), or taken out."""

    kernel: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Demand:
    """What a deployment demands of every kernel: the name of a truth of Numerics (batch_invariant, deterministic)."""

    name: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Terms:
    """What the plans of a route keep to: `plans` of the table, changed by deployments, for all routes or for one.

    weight_copies  packed copies of the weights that a layer may keep beside the checkpoint's own tensors, one a layout
    mark           where that number was set; None: nowhere
    """

    weight_copies: int = 1
    mark: Mark | None = None
    demands: tuple[Demand, ...] = ()

    @property
    def one_kernel(self) -> Demand | None:
        """The demand under which one kernel must serve every m: rows of a result are equal only within one kernel."""
        if not self.demands:
            return None
        return next((demand for demand in self.demands if demand.name == "batch_invariant"), None)


@dataclass(frozen=True, slots=True)
class Route:
    """Kernels in order of preference for one scheme on one platform.

    removed   kernels that overrides took out, each with the line that did it
    """

    scheme: str
    platform: str
    steps: tuple[Step, ...]
    require: Choice | None
    prefer: Choice | None
    mark: Mark
    terms: Terms = Terms()
    removed: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """A kernel switched off: an erratum of the shipped table, or a `disable` of a deployment.

    predicates   all must hold for the denial to apply; none means always
    platform     the only platform it applies to, or None
    models       patterns of checkpoint names, one of which must fit; none means every model, known or not
    until        ISO date after which `check` reports it as expired, or None
    """

    kernel: str
    source: str
    platform: str | None
    predicates: tuple[Predicate, ...]
    reason: str
    link: str | None
    until: str | None
    mark: Mark
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One file that made the table, in order: its name as given, its SHA-256 and its text."""

    name: str
    sha256: str
    text: str


@dataclass(frozen=True, eq=False)
class Table:
    """The validated content of dispatch.yaml plus overrides; frozen; every value knows its file, line and column.

    marks maps the path of every value ("routes", "mxfp8", "cuda", 0) to its Mark.
    """

    version: int
    platforms: Mapping[str, Platform]
    schemes: Mapping[str, Scheme]
    kernels: Mapping[str, Kernel]
    routes: Mapping[tuple[str, str], Route]
    denials: tuple[Denial, ...]
    layers: tuple[Layer, ...]
    marks: Mapping[tuple[str | int, ...], Mark]
    answers: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: everything but the remembered answers."""
        restore, (kind, fields, sealed) = reduce(self)
        return restore, (kind, fields | {"answers": {}}, sealed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        """Itself: a table never changes, so copies of what refers to it may share it."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the layers' own digests: equal digests, equal decisions."""
        from hashlib import sha256

        return sha256("\n".join(layer.sha256 for layer in self.layers).encode()).hexdigest()
