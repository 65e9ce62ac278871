"""Checkpoint tensors of one linear layer -> canonical parameters and the Problem they pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from kerneltable.errors import LayerError
from kerneltable.formats import FORMATS
from kerneltable.model import Problem, Scheme
from kerneltable.run.granularity import settle_weight_scale
from kerneltable.run.ledger import VERIFY
from kerneltable.run.transforms import unreadable

FLOATS = ("float32", "bfloat16", "float16")
INPUT_FORMATS = {getattr(torch, f.torch_dtype): f.name for f in FORMATS.values() if f.torch_dtype in FLOATS}
"""dtype of an input -> the table's name for it."""

SCALE_FORMATS = {"float32": "f32", "bfloat16": "bf16", "float8_e8m0fnu": "e8m0", "uint8": "e8m0"}
"""dtype of a scale tensor -> scale format; uint8 is never read as a number: its bytes are e8m0 exponents."""

SCALARS = ("input_scale", "input_scale_ub")


@dataclass(frozen=True, slots=True)
class Declared:
    """What the caller says about a layer; None stands for what the tensors, else the scheme's defaults, say.

    input, output    dtypes of x and of the result; output None: the same as the input
    trusted_scales   True: scales that are 0, negative, infinite or NaN are passed on instead of refused
    verify           which calls are held against the reference (run/ledger.py); None: as the ledger says
    keep_checkpoint  False: tensors that a packed copy gives back exactly are released
    """

    input: str = "bf16"
    output: str | None = None
    weight_granularity: str | None = None
    weight_block: tuple[int, int] | None = None
    input_granularity: str | None = None
    input_scaling: str | None = None
    trusted_scales: bool = False
    verify: str | None = None
    keep_checkpoint: bool = True


@dataclass(frozen=True, slots=True)
class Layer:
    """A checked layer: the problem it poses and its tensors under the scheme's own parameter names.

    tensors   weight [n, k] e4m3 row-major, weight_scale as in the checkpoint, optional input_scale, input_scale_ub
    bias      [n] f32, bf16 or f16, or None
    """

    problem: Problem
    tensors: Mapping[str, torch.Tensor]
    bias: torch.Tensor | None


def read_layer(
    scheme: Scheme,
    tensors: Mapping[str, torch.Tensor | None],
    bias: torch.Tensor | None = None,
    declared: Declared | None = None,
    name: str = "layer",
) -> Layer:
    """Check one layer's tensors and derive its Problem (m unknown).

    tensors   weight [n, k] float8_e4m3fn; weight_scale (or an alias) f32, bf16, float8_e8m0fnu or uint8 holding e8m0,
              shaped [] or [1] (tensor), [n] or [n, 1] (channel), [ceil(n/bn), ceil(k/bk)] (block);
              input_scale and input_scale_ub [] or [1]; None counts as absent
    errors    LayerError: a tensor is missing, doubled, unknown, or of a wrong shape, dtype, device or value; an unknown
              word of `verify`
    """
    declared = declared or Declared()
    if declared.verify not in (None, *VERIFY):
        raise LayerError(f"{name}: verify must be one of {', '.join(VERIFY)}; found {declared.verify!r}")
    present = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    if "bias" in present:
        bias = _one_bias(present.pop("bias"), bias, name)
    found = _canonical(scheme, present, name)
    n, k = _check_weight(found["weight"], name)
    found["weight"] = found["weight"].contiguous()
    if bias is not None:
        check_bias(bias, n, found["weight"].device, name)
    for key in SCALARS:
        if key in found:
            _check_scalar(found[key], key, name)
    scale = found["weight_scale"]
    _check_devices(found, name)
    scale_format = _scale_format(scheme, scale, name)
    granularity, block = settle_weight_scale(
        scheme, tuple(scale.shape), n, k, (declared.weight_granularity, declared.weight_block), name
    )
    if not declared.trusted_scales:
        for key in ("weight_scale", *SCALARS):
            if key in found:
                check_values(found[key], key, name)
    input_granularity, scaling = _input_scaling(scheme, "input_scale" in found, declared, name)
    problem = Problem(
        scheme.name,
        n=n,
        k=k,
        input=declared.input,
        output=declared.output or declared.input,
        bias=bias is not None,
        weight_granularity=granularity,
        weight_block=block,
        weight_scale=scale_format,
        input_granularity=input_granularity,
        input_scaling=scaling,
    )
    return Layer(problem, MappingProxyType(found), bias)


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype of a tensor without the "torch." in front."""
    return str(tensor.dtype).removeprefix("torch.")


def format_of(tensor: torch.Tensor) -> str | None:
    """The table's name for the dtype of an input ("bf16", "f16", "f32"), or None for any other dtype."""
    return INPUT_FORMATS.get(tensor.dtype)


def _canonical(scheme: Scheme, present: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Tensors under the scheme's parameter names; aliases resolved, doubles compared, strangers refused."""
    found: dict[str, torch.Tensor] = {}
    known: set[str] = set()
    for parameter in scheme.parameters.values():
        spellings = (parameter.name, *parameter.aliases)
        known.update(spellings)
        given = [spelling for spelling in spellings if spelling in present]
        if given:
            found[parameter.name] = _same(present, given, name)
        elif parameter.required:
            raise LayerError(
                f"{name}: scheme '{scheme.name}' wants {' or '.join(repr(s) for s in spellings)}; found "
                f"{_listed(present)}; give the tensor under one of these names"
            )
    strangers = sorted(set(present) - known)
    if strangers:
        raise LayerError(
            f"{name}: {_listed(strangers)} is not a parameter of scheme '{scheme.name}', which knows "
            f"{_listed(known)}; leave it out, or choose the scheme that it belongs to"
        )
    return found


def own_names(scheme: Scheme, present: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Tensors with every alias replaced by the scheme's own name; names that the scheme does not know stay.

    errors    LayerError when two names of one parameter hold different tensors
    """
    found = dict(present)
    for parameter in scheme.parameters.values():
        given = [spelling for spelling in (parameter.name, *parameter.aliases) if spelling in present]
        if given:
            tensor = _same(present, given, name)
            for spelling in given:
                del found[spelling]
            found[parameter.name] = tensor
    return found


def spelled_otherwise(scheme: Scheme, present: Mapping[str, torch.Tensor | None]) -> dict[str, str]:
    """The scheme's own name -> the alias that a checkpoint has for it, for tensors that are there by an alias alone."""
    found = {}
    for parameter in scheme.parameters.values():
        given = [s for s in (parameter.name, *parameter.aliases) if present.get(s) is not None]
        if given and given[0] != parameter.name:
            found[parameter.name] = given[0]
    return found


def _same(present: Mapping[str, torch.Tensor], given: list[str], name: str) -> torch.Tensor:
    """The one tensor behind several spellings; LayerError when they differ in dtype, shape or any byte."""
    first = present[given[0]]
    for other in given[1:]:
        tensor = present[other]
        alike = tensor.dtype == first.dtype and tensor.shape == first.shape and tensor.device == first.device
        if not alike or not torch.equal(_bytes(tensor), _bytes(first)):
            raise LayerError(
                f"{name}: '{given[0]}' ({_described(first)}) and '{other}' ({_described(tensor)}) name the same "
                "parameter and differ; keep the right one"
            )
    return first


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _check_weight(weight: torch.Tensor, name: str) -> tuple[int, int]:
    if dtype_name(weight) != FORMATS["e4m3"].torch_dtype:
        raise LayerError(
            f"{name}: weight must be float8_e4m3fn; found {_described(weight)}; "
            "view raw bytes as torch.float8_e4m3fn only if the checkpoint says that this is what they are"
        )
    if weight.dim() != 2:
        raise LayerError(f"{name}: weight must be [n, k]; found {_described(weight)}; give each linear on its own")
    return weight.shape[0], weight.shape[1]


def _one_bias(inside: torch.Tensor, beside: torch.Tensor | None, name: str) -> torch.Tensor:
    if beside is not None and beside is not inside:
        raise LayerError(f"{name}: bias is given twice, as an argument and among the tensors; give it once")
    return inside


def check_bias(bias: object, n: int, place: torch.device | None, name: str) -> None:
    """LayerError unless a bias is [n] in one of FLOATS, at the place of the weight (None: anywhere)."""
    strange = unreadable(bias)
    if not isinstance(bias, torch.Tensor) or strange or tuple(bias.shape) != (n,) or dtype_name(bias) not in FLOATS:
        found = _described(bias) if isinstance(bias, torch.Tensor) and strange is None else strange
        raise LayerError(
            f"{name}: bias must be [{n}] in {', '.join(FLOATS)}; found {found}; give the bias of this layer, or None"
        )
    if place is not None and bias.device != place:
        raise LayerError(f"{name}: bias is on {bias.device}, weight on {place}; move both to one device")


def _check_scalar(tensor: torch.Tensor, key: str, name: str) -> None:
    if tuple(tensor.shape) not in ((), (1,)) or dtype_name(tensor) not in ("float32", "bfloat16"):
        raise LayerError(f"{name}: {key} must be one float32 or bfloat16 number; found {_described(tensor)}")


def _check_devices(found: Mapping[str, torch.Tensor], name: str) -> None:
    devices = {key: str(tensor.device) for key, tensor in found.items()}
    if len(set(devices.values())) > 1:
        places = ", ".join(f"{key} on {device}" for key, device in devices.items())
        raise LayerError(f"{name}: the tensors of a layer must be on one device; found {places}; move them together")


def _scale_format(scheme: Scheme, scale: torch.Tensor, name: str) -> str:
    found = SCALE_FORMATS.get(dtype_name(scale))
    if found is None or found not in scheme.weight.scales:
        wanted = [dtype for dtype, fmt in SCALE_FORMATS.items() if fmt in scheme.weight.scales]
        raise LayerError(
            f"{name}: weight_scale of scheme '{scheme.name}' must be {' or '.join(wanted)}; found {_described(scale)}; "
            "convert the scales, or choose the scheme they belong to"
        )
    return found


def check_values(scale: torch.Tensor, key: str, name: str) -> None:
    """LayerError with the index of the first scale that is not finite and above 0 (e8m0: of the first NaN, 0xff)."""
    if scale.is_meta or scale.numel() == 0:
        return
    exponents = SCALE_FORMATS[dtype_name(scale)] == "e8m0"
    bad = scale.view(torch.uint8) == 0xFF if exponents else ~(torch.isfinite(scale) & (scale > 0))
    if not bool(bad.any()):
        return
    index = [int(i) for i in bad.nonzero()[0]]
    value = "nan (0xff)" if exponents else repr(float(scale[tuple(index)]))
    raise LayerError(
        f"{name}: {key}{index} must be finite and above 0; found {value}; {int(bad.sum())} of {bad.numel()} are "
        "wrong; export the checkpoint again, or declare trusted_scales=True to pass them on"
    )


def _input_scaling(scheme: Scheme, has_scale: bool, declared: Declared, name: str) -> tuple[str | None, str | None]:
    """(granularity, scaling) of the input: static when there is an input_scale, else as declared, else defaults."""
    granularity, scaling = declared.input_granularity, declared.input_scaling
    quantized = granularity != "none" and scheme.input.formats != ("none",)
    if not quantized:
        return granularity, scaling
    if not has_scale:
        if scaling == "static":
            raise LayerError(f"{name}: a static input wants 'input_scale'; found none; give it, or declare dynamic")
        return granularity, scaling
    if scaling == "dynamic" or "static" not in scheme.input.scalings:
        raise LayerError(
            f"{name}: 'input_scale' is given, but the input of scheme '{scheme.name}' is "
            f"{'declared' if scaling == 'dynamic' else 'always'} dynamic; leave the tensor out, or "
            "choose a static scheme"
        )
    if granularity not in (None, "tensor"):
        raise LayerError(f"{name}: 'input_scale' is one number for the whole input; found granularity '{granularity}'")
    return "tensor", "static"


def _described(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor)} {list(tensor.shape)}"


def _listed(names: Mapping[str, object] | set[str] | list[str]) -> str:
    return ", ".join(repr(name[:200]) for name in sorted(names)) or "no tensors"
