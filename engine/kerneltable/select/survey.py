"""What several proofs look at: the spaces of the schemes, the devices, and who wins where. Each is worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kerneltable.model import Device, Mark, Problem, Route, Table
from kerneltable.select.boxes import Box
from kerneltable.select.fleet import architectures, future_chips
from kerneltable.select.region_text import explain_command, whole
from kerneltable.select.regions import Winner, winners
from kerneltable.select.space import Space, space_of

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that was proved. `kerneltable rule CODE` explains the code and states its severity.

    path      the place in the table, e.g. ("routes", "mxfp8", "cuda", 0)
    help      the next step
    witness   an `explain` command that shows it, or ""
    """

    code: str
    message: str
    mark: Mark
    path: Path
    help: str
    witness: str = ""
    length: int = 1


@dataclass(frozen=True)
class Survey:
    """A table with its devices. more: options that the witness commands need, such as "-f deploy.yaml"."""

    table: Table
    more: str = ""
    known: tuple[Device, ...] = ()
    future: tuple[Device, ...] = ()
    spaces: dict[str, Space] = field(default_factory=dict)
    won: dict[tuple[str, Device], tuple[Winner, ...]] = field(default_factory=dict)

    def space(self, scheme: str) -> Space:
        """The space of a scheme."""
        if scheme not in self.spaces:
            gone = (
                one.kernel for route in self.table.routes.values() if route.scheme == scheme for one in route.removed
            )
            also = [predicate for kernel in gone for predicate in self.table.kernels[kernel].accepts]
            self.spaces[scheme] = space_of(scheme, self.table, also=also)
        return self.spaces[scheme]

    def whole(self, scheme: str) -> Box:
        """The problems of a scheme with sizes of at least 1."""
        return whole(self.space(scheme), self.table)

    def winners(self, scheme: str, device: Device) -> tuple[Winner, ...]:
        """Who wins these problems on a device."""
        key = (scheme, device)
        if key not in self.won:
            self.won[key] = winners(self.table, device, self.space(scheme), self.whole(scheme))
        return self.won[key]

    def devices(self, platform: str, *, future: bool = False) -> list[Device]:
        """The architectures of a platform; with the unknown future chip on request."""
        every = (*self.known, *self.future) if future else self.known
        return [one for one in every if one.platform == platform]

    def routes(self) -> Iterator[Route]:
        """The routes of the table, in its order."""
        yield from self.table.routes.values()

    def explain(self, problem: Problem, device: Device, option: str = "") -> str:
        """The command that shows a problem on a device of this survey."""
        more = " ".join(text for text in (option, self.more) if text)
        return explain_command(self.table, problem, device.name, more)


def survey_of(table: Table, more: str = "") -> Survey:
    """A survey of every architecture of the table and of the chips to come."""
    return Survey(table, more, architectures(table), future_chips(table))


def named(devices: list[Device] | tuple[Device, ...]) -> str:
    """Devices for a message: their names, the unknown chip as such."""
    return ", ".join(one.name if one.architecture else f"an unknown chip ({one.name})" for one in devices)
