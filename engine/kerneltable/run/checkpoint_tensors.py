"""A module that holds a layer's tensors as the checkpoint has them, whatever torch does to modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from kerneltable.errors import LayerError
from kerneltable.run.layer import SCALARS, check_values, own_names

if TYPE_CHECKING:
    from typing import Self

    from kerneltable.model import Scheme
    from kerneltable.run.tensor_source import TensorSource

HANDLE = "_handle"
NARROW = "_narrow"
"""In a copied state: dtypes of 8-bit floats, which go as bytes (torch cannot unpickle them outside torch.save)."""

SCALES = ("weight_scale", *SCALARS)


class CheckpointTensors(torch.nn.Module):
    """Tensors of one layer: buffers under the scheme's own names, in a state dict under those of the checkpoint.

    They keep their dtypes: `.half()` and `.to(dtype)` move nothing but the device. A subclass says what follows when
    they change, and may release tensors that a packed copy gives back (`_source`): their buffers are None, and whoever
    asks for them (by name, a state dict, a copy) gets new tensors with the same bytes.
    """

    _source: TensorSource | None
    _lock: AbstractContextManager[Any]

    def __init__(
        self,
        scheme: Scheme,
        tensors: Mapping[str, torch.Tensor],
        bias: torch.Tensor | None,
        *,
        spelled: Mapping[str, str],
        trusted_scales: bool,
        name: str,
    ) -> None:
        """Keep the tensors.

        tensors   checked, under the scheme's own names
        spelled   own name -> name in the checkpoint, where they differ
        """
        super().__init__()
        self.name = name
        self._scheme = scheme
        self._spelled = dict(spelled)
        self._trusted = trusted_scales
        self._parameters_of = tuple(tensors)
        self._source = None
        for key, tensor in tensors.items():
            self.register_buffer(key, tensor.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors under the scheme's own names, without the bias; released ones are made anew."""
        source, pins = self._source, self._pins()
        missing = [key for key, tensor in pins.items() if tensor is None]
        source = self._source or source  # released, or held again, by another thread meanwhile
        back = source.whole() if source is not None and missing else {}
        found = {key: back.get(key) if tensor is None else tensor for key, tensor in pins.items()}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def held(self) -> dict[str, torch.Tensor]:
        """Those of the checkpoint's tensors that are in memory now."""
        kept = {} if self._source is None else self._source.held()
        found = {key: kept.get(key) if tensor is None else tensor for key, tensor in self._pins().items()}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    @property
    def place(self) -> torch.device:
        """Where the layer is."""
        weight = self._buffers["weight"]
        if weight is None and self._source is not None:
            return self._source.place
        return self.tensors()["weight"].device if weight is None else weight.device

    def __getattr__(self, name: str) -> torch.Tensor | torch.nn.Module:
        """What torch's modules answer, and released tensors, made anew each time."""
        found: Any = super().__getattr__(name)
        made = self.tensors().get(name) if found is None and name in self._parameters_of else None
        return found if made is None else made

    def __setattr__(self, name: str, value: Any) -> None:
        """What torch's modules do. A tensor is a buffer also if it comes as a parameter; no old graph is replayed."""
        if not self._is_tensor(name):
            super().__setattr__(name, value)
            return
        value = self._as_buffer(name, value)
        with self._lock:
            super().__setattr__(name, value)
            self._changed(numbers=False)

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """What torch's modules do, but for the layer's own tensors: they are assigned, and stay buffers."""
        if self._is_tensor(name):
            setattr(self, name, param)
        else:
            super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        """What torch's modules do. errors: LayerError for a tensor of the layer, which keeps it."""
        if self._is_tensor(name):
            raise LayerError(
                f"{self.name}: {name} must stay a buffer of the layer, whose kernels read it; it can neither be "
                "deleted nor parametrized; assign another tensor (or None, for a bias), or build a new layer"
            )
        super().__delattr__(name)

    def _is_tensor(self, name: str) -> bool:
        """Whether this is the name of one of the layer's tensors, its bias among them."""
        own = self.__dict__.get("_parameters_of", ())
        return name in own or (name == "bias" and bool(own))

    def _as_buffer(self, name: str, value: Any) -> Any:
        """A value to be assigned, as a buffer. errors: LayerError for None."""
        if value is None and name != "bias":
            raise LayerError(
                f"{self.name}: {name} must be a tensor; found None; assign another tensor, or build a new layer"
            )
        followed = isinstance(value, torch.nn.Parameter) or (isinstance(value, torch.Tensor) and value.requires_grad)
        return value.detach() if followed else value

    def _pins(self) -> dict[str, torch.Tensor | None]:
        """The buffers of the checkpoint's tensors as they are; None for released ones."""
        return {key: self._buffers[key] for key in self._parameters_of}

    def _hold(self, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Hold all tensors as buffers again (these, or what is there and made anew); nothing is released then."""
        self._buffers.update(self.tensors() if tensors is None else tensors)
        self._source = None

    def _let_go(self, source: TensorSource, pins: Mapping[str, torch.Tensor | None]) -> None:
        """Hold no longer what a source released; a tensor that is not the one of `pins` any more stays."""
        self._source = source
        for key in source.released:
            if self._buffers[key] is pins[key]:
                self._buffers[key] = None

    def _changed(self, *, numbers: bool) -> None:
        """The tensors are others now, or elsewhere; numbers False: their place in memory at most."""
        raise NotImplementedError

    def _drop(self) -> frozenset[str]:
        """The names of attributes that belong to this process, device and moment, and are not copied."""
        raise NotImplementedError

    # --- Moving ---------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move the tensors as asked, and never convert them."""
        with self._lock:
            return self._moved(fn, recurse)

    def _moved(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool) -> Self:
        source, pins = self._source, self._pins()
        self._hold()
        before = {key: buffer for key, buffer in self._buffers.items() if buffer is not None and key != HANDLE}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key, old in before.items():
            new = self._buffers[key]
            if new is not None and new.dtype != old.dtype:
                self._buffers[key] = old.to(new.device)
        numbers = any(self._buffers[key] is not old for key, old in before.items())
        if not numbers:
            self._source = source
            self._buffers.update(pins)
        self._changed(numbers=numbers)
        return self

    # --- State dicts ----------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The tensors under the names that the checkpoint had for them."""
        found: dict[str, Any] = {}
        super()._save_to_state_dict(found, prefix, keep_vars)
        found |= {prefix + key: tensor.detach() for key, tensor in self.tensors().items() if prefix + key not in found}
        destination.update({prefix + key: found.pop(prefix + key) for key in self._buffers if prefix + key in found})
        destination.update(found)
        for own, given in self._spelled.items():
            destination[prefix + given] = destination.pop(prefix + own)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Take other tensors of the same shapes and dtypes, under their own names or any alias; all of them or none.

        Hooks that torch runs before a module loads see the state dict as it came, and what they make of it is checked.
        errors   LayerError for another dtype (torch would convert it, and scales would no longer fit), bad scales, or
                 two names of one tensor that differ; other shapes are reported as torch does
        """
        with self._lock:
            hooks = self._load_state_dict_pre_hooks
            for hook in tuple(hooks.values()):
                hook(state_dict, prefix, metadata, strict, missing, unexpected, errors)
            part = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            given = own_names(self._scheme, part, self.name)
            shapes = self._check_given(given, prefix)
            if shapes:
                errors.extend(shapes)
                return
            renamed = {prefix + key: value.detach() for key, value in given.items()}
            self._hold()
            self._load_state_dict_pre_hooks = type(hooks)()  # each ran by now
            try:
                super()._load_from_state_dict(renamed, prefix, metadata, strict, missing, unexpected, errors)
            finally:
                self._load_state_dict_pre_hooks = hooks
            self._changed(numbers=True)

    def _check_given(self, given: Mapping[str, torch.Tensor], prefix: str) -> list[str]:
        """Tensors of a state dict whose shape does not fit, in torch's words; LayerError for what must not be taken."""
        wrong = []
        released = {} if self._source is None else self._source.outlines()
        for key, buffer in self._buffers.items():
            held, new = released.get(key) if buffer is None else buffer, given.get(key)
            if held is None or new is None:
                continue
            if new.dtype != held.dtype:
                raise LayerError(
                    f"{self.name}: {key} must be {held.dtype}; found {new.dtype} in the state dict; build a new layer "
                    "from these tensors"
                )
            if new.shape != held.shape:
                wrong.append(
                    f"size mismatch for {prefix}{key}: copying a param with shape {new.shape} from checkpoint, "
                    f"the shape in current model is {held.shape}."
                )
            elif key in SCALES and not self._trusted:
                check_values(new, key, self.name)
        return wrong

    # --- Copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in self._drop()}
        held = {key: value for key, value in self._buffers.items() if key != HANDLE} | self.tensors()
        narrow = {
            key: t.dtype for key, t in held.items() if t is not None and t.is_floating_point() and t.itemsize == 1
        }
        state[NARROW] = narrow
        state["_buffers"] = {
            key: t if t is None or key not in narrow else t.view(torch.uint8) for key, t in held.items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        narrow = state.pop(NARROW)
        self._source = None
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for key, dtype in narrow.items():
            self._buffers[key] = getattr(self, key).view(dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self._scheme)] = self._scheme
        state = {key: deepcopy(value, memo) for key, value in self.__getstate__().items()}
        twin.__setstate__(state)
        return twin
