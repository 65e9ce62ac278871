"""Schemes, and the layers that are computed in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kerneltable.model.copying import reduce
from kerneltable.model.marks import Mark


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of a quantized layer: its name in the scheme, and the other names checkpoints use for it."""

    name: str
    required: bool
    aliases: tuple[str, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Operand:
    """Weight or input of a scheme. The first value of each tuple is the default of a Problem.

    formats        element formats ("e4m3"); "none" for an input left at 16 or 32 bits
    granularities  what one scale covers: tensor, channel (a row of the weight), token (a row of the input), block, none
    blocks         [rows, columns] of one scale when the granularity is block; the first is the default
    any_block      True when other blocks may be described too (kernels then say which they take)
    scales         formats of the scale: f32, bf16, e8m0
    scalings       dynamic, static; only for inputs
    """

    formats: tuple[str, ...]
    granularities: tuple[str, ...]
    blocks: tuple[tuple[int, int], ...]
    any_block: bool
    scales: tuple[str, ...]
    scalings: tuple[str, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantization scheme: formats and scale granularity of weight and input, and a layer's parameters."""

    name: str
    summary: str
    weight: Operand
    input: Operand
    parameters: Mapping[str, Parameter]
    mark: Mark

    __reduce__ = reduce


@dataclass(frozen=True)
class Problem:
    """One linear layer to compute: [m, k] x [n, k] -> [m, n].

    m is None when it is not known (a layer that must take any m). What is None among the quantization details
    stands for the scheme's default; `kerneltable.select.complete` fills it in. model is the name of the checkpoint, or
    None; only errata look at it.
    """

    scheme: str
    n: int = field(kw_only=True)
    k: int = field(kw_only=True)
    m: int | None = field(default=None, kw_only=True)
    input: str = field(default="bf16", kw_only=True)
    output: str = field(default="bf16", kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    weight_granularity: str | None = field(default=None, kw_only=True)
    weight_block: tuple[int, int] | None = field(default=None, kw_only=True)
    weight_scale: str | None = field(default=None, kw_only=True)
    input_granularity: str | None = field(default=None, kw_only=True)
    input_scaling: str | None = field(default=None, kw_only=True)
    model: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        block = None if self.weight_block is None else tuple(self.weight_block)
        object.__setattr__(self, "weight_block", block)
        values = tuple(getattr(self, name) for name in self.__dataclass_fields__)
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    __reduce__ = reduce

    def at(self, m: int | None) -> Problem:
        """The same layer with another number of rows."""
        return replace(self, m=m)
