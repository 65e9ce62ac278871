"""What a checkpoint's config says about each of its linears. A config is data: nothing in it is imported or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.group_format import GroupFormat, Unsupported, group_format, preset
from kerneltable.run.checkpoints.patterns import Patterns, read_globs, read_patterns

Json = Mapping[str, object]

MODELOPT = {
    "FP8": GroupFormat("fp8_w8a8", "tensor", None, "tensor", "static"),
    "FP8_PER_CHANNEL_PER_TOKEN": GroupFormat("fp8_w8a8", "channel", None, "token", "dynamic"),
    "FP8_PER_CHANNEL": GroupFormat("w8a16_fp8", "channel", None, None, None),
    "FP8_PB_WO": GroupFormat("w8a16_fp8", "block", (128, 128), None, None),
    "MXFP8": GroupFormat("mxfp8", "block", None, "block", "dynamic"),
}
"""Algorithms of ModelOpt; PB_WO (block, weight only) stores scales as [rows, 1, columns, 1]."""

METHODS = f"fp8, compressed-tensors and modelopt ({', '.join(MODELOPT)}, MIXED_PRECISION)"


@dataclass(frozen=True, slots=True)
class Group:
    """Layers of one format: who belongs to it, and what it is; None: the group leaves its layers alone."""

    name: str
    targets: Patterns
    format: GroupFormat | Unsupported | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the config says about one layer.

    format       its format, or why there is none for it; None: the config leaves the layer alone
    expected     the config names this layer itself (not just "Linear"): its scales must be there
    why          for a layer that is left alone: the entry that says so
    """

    format: GroupFormat | Unsupported | None
    expected: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization config, ready to be asked about a layer."""

    method: str
    groups: tuple[Group, ...]
    ignore: Patterns

    def verdict(self, layer: str) -> Verdict:
        """What the config says about the layer of this name: an exact name beats an expression beats "Linear"."""
        ignored = self.ignore.named_by(layer)
        if ignored is not None:
            return Verdict(None, False, f"ignored by '{ignored}'")
        exact = [g for g in self.groups if g.targets.is_exact(layer)]
        named = [g for g in self.groups if g.targets.named_by(layer) is not None]
        chosen = exact or named or [g for g in self.groups if g.targets.all_linear]
        if not chosen:
            return Verdict(None, False, "no config group targets it")
        expected = bool(exact or named) and self.ignore.container_of(layer) is None
        if any(group.format != chosen[0].format for group in chosen):
            names = ", ".join(group.name for group in chosen)
            return Verdict(Unsupported("ambiguous", f"config groups {names} target it alike and differ"), True)
        if chosen[0].format is None:
            return Verdict(None, False, f"config group {chosen[0].name} quantizes nothing")
        return Verdict(chosen[0].format, expected)


def read_quantization(config: Json, where: str) -> Quantization:
    """Read the quantization part of a config.json or hf_quant_config.json, given as parsed JSON.

    errors   CheckpointError: none there, a method that no scheme covers, or a part of a wrong kind
    """
    section = config.get("quantization_config", config.get("compression_config"))
    if section is None and isinstance(config.get("quantization"), Mapping):
        section = {"quant_method": "modelopt", "quantization": config["quantization"]}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{where}: wanted an object 'quantization_config'; found none; is the model quantized?")
    method = str(section.get("quant_method", ""))[:200]
    if method == "compressed-tensors" or (not method and "config_groups" in section):
        return _compressed_tensors(section, where)
    if method == "fp8":
        return _hugging_face_fp8(section, where)
    if method.startswith("modelopt"):
        return _modelopt(section, where)
    raise CheckpointError(f"{where}: quant_method {method!r} is not covered by any scheme; wanted {METHODS}")


def _hugging_face_fp8(section: Json, where: str) -> Quantization:
    fmt = section.get("fmt", "e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise CheckpointError(f"{where}: fp8 'fmt' must be 'e4m3'; found {str(fmt)[:80]!r}")
    scaling = section.get("activation_scheme", "dynamic")
    if scaling not in ("dynamic", "static"):
        raise CheckpointError(f"{where}: 'activation_scheme' must be dynamic or static; found {str(scaling)[:80]!r}")
    block = section.get("weight_block_size")
    if block is None:
        token = "tensor" if scaling == "static" else "token"
        form = GroupFormat("fp8_w8a8", "tensor", None, token, str(scaling))
    elif scaling == "static":
        raise CheckpointError(
            f"{where}: weight_block_size with a static activation_scheme is not covered by any scheme"
        )
    else:
        form = GroupFormat("fp8_block_w8a8", "block", _block(block, where), "block", "dynamic")
    left = [*_list(section, "modules_to_not_convert", where), *_list(section, "ignored_layers", where)]
    return Quantization("fp8", (Group("fp8", read_patterns(["Linear"], where), form),), read_globs(left, where))


def _modelopt(section: Json, where: str) -> Quantization:
    inner = section.get("quantization", section)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{where}: 'quantization' must be an object; found {str(inner)[:80]!r}")
    left = [*_list(inner, "exclude_modules", where), *_list(section, "ignore", where)]
    algorithm = str(inner.get("quant_algo", ""))[:80]
    if algorithm == "MIXED_PRECISION":
        groups = _mixed(inner.get("quantized_layers"), where)
    else:
        form = MODELOPT.get(algorithm)
        if form is None:
            raise CheckpointError(
                f"{where}: ModelOpt quant_algo {algorithm!r} is not covered by any scheme; wanted {', '.join(MODELOPT)}"
            )
        groups = (Group(algorithm, read_patterns(["Linear"], where), form),)
    return Quantization("modelopt", groups, read_globs(left, where))


def _mixed(layers: object, where: str) -> tuple[Group, ...]:
    """One group for each algorithm of ModelOpt's MIXED_PRECISION: layer name -> {"quant_algo": ...}."""
    if not isinstance(layers, Mapping) or not layers:
        raise CheckpointError(f"{where}: 'quantized_layers' must be an object; found {str(layers)[:80]!r}")
    names: dict[str, list[object]] = {}
    for name, entry in layers.items():
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"{where}: quantized_layers.{str(name)[:200]}: wanted an object; found {entry!r:.80}")
        names.setdefault(str(entry.get("quant_algo", ""))[:80], []).append(name)
    return tuple(
        Group(algorithm, read_patterns(targets, where), MODELOPT.get(algorithm) or _unknown(algorithm))
        for algorithm, targets in names.items()
    )


def _unknown(algorithm: str) -> Unsupported:
    return Unsupported(algorithm or "no quant_algo", f"no scheme has it; known are {', '.join(MODELOPT)}")


def _compressed_tensors(section: Json, where: str) -> Quantization:
    for key in ("sparsity_config", "transform_config"):
        if _changes_numbers(section.get(key)):
            raise CheckpointError(f"{where}: '{key}' is set: it changes the product, and no scheme covers it")
    found = section.get("config_groups")
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(
            f"{where}: 'config_groups' must be an object with at least one group; found {str(found)[:80]!r}"
        )
    groups = tuple(_group(str(name)[:200], group, section.get("format"), where) for name, group in found.items())
    return Quantization("compressed-tensors", groups, read_patterns(_list(section, "ignore", where), where))


def _group(name: str, group: object, top_format: object, where: str) -> Group:
    here = f"{where}: config_groups.{name}"
    if isinstance(group, list):
        return Group(name, read_patterns(group, here), preset(name))
    if not isinstance(group, Mapping):
        raise CheckpointError(f"{here}: wanted an object, or a list of targets; found {str(group)[:80]!r}")
    stored = group.get("format") or top_format
    return Group(name, read_patterns(_list(group, "targets", here), here), group_format(group, stored, here))


def _changes_numbers(part: object) -> bool:
    """True for a sparsity or transform section that has content beyond "dense" and empty values."""
    if not isinstance(part, Mapping):
        return bool(part)
    return part.get("format", "dense") != "dense" or any(v for k, v in part.items() if k == "config_groups")


def _list(section: Json, key: str, where: str) -> list[object]:
    found = section.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise CheckpointError(f"{where}: '{key}' must be a list; found {str(found)[:80]!r}")
    return found


def _block(found: object, where: str) -> tuple[int, int]:
    if isinstance(found, list) and len(found) == 2 and all(type(b) is int and 0 < b <= 1 << 20 for b in found):
        return found[0], found[1]
    raise CheckpointError(f"{where}: 'weight_block_size' must be two positive integers; found {str(found)[:80]!r}")
