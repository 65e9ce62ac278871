"""The answer of a selection."""

from __future__ import annotations

from dataclasses import dataclass

from kerneltable.model.chips import Device
from kerneltable.model.marks import Mark
from kerneltable.model.problems import Problem


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a kernel does not take a problem: the return value of the check itself."""

    kernel: str
    predicate: str
    wanted: str
    found: str
    where: Mark

    def __str__(self) -> str:
        return f"{self.predicate}: wanted {self.wanted}, found {self.found} ({self.where})"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel of the route and its verdict: chosen, refused (with every refusal), or later (it would do too)."""

    kernel: str
    verdict: str
    refusals: tuple[Refusal, ...]
    where: Mark


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer of `select`: kernel is the id of the chosen row, or None when every candidate refuses."""

    kernel: str | None
    candidates: tuple[Candidate, ...]
    problem: Problem
    device: Device
    notes: tuple[str, ...] = ()
