"""The values that every part of kerneltable passes around.

Standard library only: the table can be read and a kernel chosen on a machine without torch.
All of them are frozen; a value from the table carries the Mark of the text that set it.
"""

from kerneltable.model.answers import Candidate, Refusal, Selection
from kerneltable.model.chips import Architecture, Device, Family, Platform
from kerneltable.model.marks import Mark
from kerneltable.model.predicates import Capability, MultipleOf, Needs, OneOf, Predicate, Range, Value
from kerneltable.model.problems import Operand, Parameter, Problem, Scheme
from kerneltable.model.rows import (
    CHECKPOINT,
    Choice,
    Demand,
    Denial,
    Kernel,
    Layer,
    Numerics,
    Route,
    RunsOn,
    Step,
    Table,
    Terms,
    Verified,
)

__all__ = [
    "CHECKPOINT",
    "Architecture",
    "Candidate",
    "Capability",
    "Choice",
    "Demand",
    "Denial",
    "Device",
    "Family",
    "Kernel",
    "Layer",
    "Mark",
    "MultipleOf",
    "Needs",
    "Numerics",
    "OneOf",
    "Operand",
    "Parameter",
    "Platform",
    "Predicate",
    "Problem",
    "Range",
    "Refusal",
    "Route",
    "RunsOn",
    "Scheme",
    "Selection",
    "Step",
    "Table",
    "Terms",
    "Value",
    "Verified",
]
