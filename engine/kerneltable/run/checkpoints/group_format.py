"""One config group of compressed-tensors -> a scheme with its details, or the name of what no scheme covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kerneltable.errors import CheckpointError

Json = Mapping[str, object]

STORED = (None, "float-quantized", "naive-quantized", "mxfp8-quantized", "mixed-precision")
"""Ways of storing that leave e4m3 codes in `weight` and scales in `weight_scale`."""


@dataclass(frozen=True, slots=True)
class GroupFormat:
    """A scheme, and what the config settles of a layer that has it."""

    scheme: str
    weight_granularity: str
    weight_block: tuple[int, int] | None
    input_granularity: str | None
    input_scaling: str | None


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A format that no scheme covers: its name, and what is missing."""

    format: str
    missing: str


PRESETS = {
    "FP8": GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static"),
    "FP8_DYNAMIC": GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic"),
    "FP8_BLOCK": GroupFormat("fp8_block_w8a8", "block", (128, 128), "block", "dynamic"),
    "MXFP8": GroupFormat("mxfp8", "block", None, "block", "dynamic"),
    "MXFP8A16": GroupFormat("mxfp8", "block", None, "none", None),
}
"""Groups given by name alone, as the compressed-tensors library defines them (version 0.20)."""

UNQUANTIZED = "UNQUANTIZED"
"""The library's preset of a group that quantizes nothing."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The quantization arguments of a weight or an input, with the library's defaults filled in."""

    bits: int
    kind: str
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    symmetric: bool
    dynamic: object
    scale_dtype: str


def preset(name: str) -> GroupFormat | Unsupported | None:
    """The format of a group that is a preset's name with a list of targets; None: it leaves them alone."""
    if name.upper() == UNQUANTIZED:
        return None
    known = ", ".join((*PRESETS, UNQUANTIZED))
    return PRESETS.get(name.upper()) or Unsupported(name, f"no scheme has this preset; known are {known}")


def group_format(group: Json, stored: object, where: str) -> GroupFormat | Unsupported | None:
    """The scheme of a config group; None for one that has neither weights, inputs nor outputs: it leaves layers alone.

    group    the group's object; stored: its `format`, else the config's
    errors   CheckpointError when a part is of a wrong kind (a format that is merely unknown is returned)
    """
    weights = read_arguments(group.get("weights"), f"{where}.weights")
    inputs = read_arguments(group.get("input_activations"), f"{where}.input_activations")
    if weights is None:
        return _weightless(inputs is not None, group.get("output_activations") is not None)
    label = format_name(weights)
    if weights.kind != "float" or weights.bits != 8 or weights.strategy == "tensor_group":
        return Unsupported(label, f"no scheme has {label} weights")
    if stored not in STORED:
        return Unsupported(str(stored)[:80], f"no scheme reads weights stored as '{str(stored)[:80]}'")
    if not weights.symmetric or (inputs is not None and not inputs.symmetric):
        return Unsupported(f"asymmetric {label}", "no scheme has zero points")
    if group.get("output_activations") is not None:
        return Unsupported(f"{label} with quantized outputs", "no scheme quantizes outputs")
    if inputs is not None and (inputs.kind != "float" or inputs.bits != 8 or inputs.strategy == "tensor_group"):
        return Unsupported(f"{label} weights with {format_name(inputs)} inputs", "no scheme has such inputs")
    if label == "MXFP8" or stored == "mxfp8-quantized":
        return _mxfp8(inputs)
    return _fp8(weights, inputs)


def _weightless(inputs: bool, outputs: bool) -> Unsupported | None:
    """What a group without weights is."""
    asked = " and ".join(name for name, there in (("inputs", inputs), ("outputs", outputs)) if there)
    return Unsupported(f"{asked} only", f"no scheme quantizes {asked} and leaves weights alone") if asked else None


def format_name(arguments: Arguments) -> str:
    """The name people use: FP8, MXFP8, NVFP4, INT4 ..."""
    if arguments.kind == "float" and arguments.strategy == "tensor_group":
        return f"NVFP{arguments.bits}"
    microscaled = arguments.kind == "float" and arguments.group == 32 and "uint8" in arguments.scale_dtype
    prefix = "MXFP" if microscaled else "FP" if arguments.kind == "float" else arguments.kind.upper()
    return f"{prefix}{arguments.bits}"


def _mxfp8(inputs: Arguments | None) -> GroupFormat | Unsupported:
    if inputs is None:
        return GroupFormat("mxfp8", "block", None, "none", None)
    if format_name(inputs) == "MXFP8" and inputs.dynamic is True:
        return GroupFormat("mxfp8", "block", None, "block", "dynamic")
    return Unsupported(
        f"MXFP8 weights with {inputs.strategy} inputs", "scheme mxfp8 has inputs in blocks of 32, or none"
    )


def _fp8(weights: Arguments, inputs: Arguments | None) -> GroupFormat | Unsupported:
    """Schemes with float scales: a group of columns is a block of one row."""
    block = weights.block if weights.strategy == "block" else (1, weights.group or 1)
    granularity = "block" if weights.strategy in ("block", "group") else weights.strategy
    if granularity not in ("block", "channel", "tensor") or (granularity == "block" and block is None):
        return Unsupported(f"FP8 weights per {weights.strategy}", "schemes have scales per tensor, channel or block")
    block = block if granularity == "block" else None
    if inputs is None:
        return GroupFormat("w8a16_fp8", granularity, block, None, None)
    scaling = {True: "dynamic", False: "static"}.get(inputs.dynamic) if isinstance(inputs.dynamic, bool) else None
    asked = (inputs.strategy, scaling)
    if block is None and asked in (("token", "dynamic"), ("tensor", "dynamic"), ("tensor", "static")):
        return GroupFormat("fp8_w8a8", granularity, None, inputs.strategy, scaling)
    if block is not None and asked == ("group", "dynamic") and inputs.group == block[1]:
        return GroupFormat("fp8_block_w8a8", "block", block, "block", "dynamic")
    size = "" if block is None else f" of {block[0]}x{block[1]}"
    group = "" if inputs.group is None else f" of {inputs.group}"
    return Unsupported(
        f"FP8 weights per {granularity}{size} with {scaling or inputs.dynamic} inputs per {inputs.strategy}{group}",
        "no scheme pairs these",
    )


def read_arguments(found: object, where: str) -> Arguments | None:
    """The arguments of a weight or an input; None when the config has none.

    errors   CheckpointError when a value is of a wrong kind
    """
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where}: wanted an object; found {str(found)[:80]!r}")
    group = _integer(found, "group_size", where)
    strategy = found.get("strategy")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    return Arguments(
        bits=_integer(found, "num_bits", where) or 8,
        kind=str(found.get("type", "int"))[:80].lower(),
        strategy=str(strategy)[:80].lower(),
        group=group,
        block=_block(found.get("block_structure"), where),
        symmetric=found.get("symmetric", True) is True,
        dynamic=found.get("dynamic", False),
        scale_dtype=str(found.get("scale_dtype", ""))[:80],
    )


def _integer(found: Json, key: str, where: str) -> int | None:
    value = found.get(key)
    if value is None:
        return None
    if type(value) is not int or not -1 <= value <= 1 << 20:
        raise CheckpointError(f"{where}.{key}: wanted an integer; found {str(value)[:80]!r}")
    return value


def _block(found: object, where: str) -> tuple[int, int] | None:
    """[rows, columns], or the older text "128x128"."""
    if found is None:
        return None
    parts = found.split("x") if isinstance(found, str) else found
    if isinstance(parts, list) and len(parts) == 2 and all(str(p).isdecimal() and 0 < int(p) <= 1 << 20 for p in parts):
        return int(parts[0]), int(parts[1])
    raise CheckpointError(f"{where}.block_structure: wanted two positive integers; found {str(found)[:80]!r}")
