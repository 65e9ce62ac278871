"""A layer's tensors as its plans see them: held as in the checkpoint, or made again from a packed copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kerneltable.run.packing import holds
from kerneltable.run.trial import same_bytes


@dataclass(frozen=True, slots=True)
class PackedCopy:
    """A packed copy of weights, and the way back.

    kernel   whose adapter packed it; layout as the table calls it
    unpack   gives tensors of the checkpoint by the scheme's own names, as bytes of any dtype and shape
    """

    kernel: str
    layout: str
    unpack: Callable[[], Mapping[str, Tensor]]


class TensorSource:
    """The tensors of one layer under the scheme's own names; `whole` gives all of them, whatever is held.

    Plans of one layer share one, so that a tensor made again for one of them is held once. `release` and `keep` replace
    one mapping by another: whoever reads at the same time sees the one or the other, and both are right.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors, the checkpoint's own."""
        self._held = dict(tensors)
        self._outlines = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        self._copy: PackedCopy | None = None
        self._released: tuple[str, ...] = ()
        self._key: int | None = None
        self.place = tensors["weight"].device

    @property
    def copy(self) -> PackedCopy | None:
        """The packed copy that stands for what was released; None while nothing was."""
        return self._copy

    @property
    def released(self) -> tuple[str, ...]:
        """The names that the packed copy stands for, also when a kernel made the layer hold them again."""
        return self._released

    @property
    def key(self) -> int:
        """A number that stays the same for these tensors: where the weight is, or was when it was released."""
        return self._held["weight"].data_ptr() if self._key is None else self._key

    def held(self) -> dict[str, Tensor]:
        """The tensors that are in memory as in the checkpoint."""
        return dict(self._held)

    def outlines(self) -> dict[str, Tensor]:
        """Dtype and shape of each released tensor, as tensors on meta."""
        return {name: self._outlines[name] for name in self._released}

    def whole(self) -> dict[str, Tensor]:
        """Every tensor as in the checkpoint, byte for byte; released ones are new tensors, for the caller alone.

        errors   torch.OutOfMemoryError
        """
        held = self._held
        if len(held) == len(self._outlines) or self._copy is None:
            return dict(held)
        made = _made(self._copy, self._outlines)
        return {name: held[name] if name in held else made[name] for name in self._outlines}

    def release(self, copy: PackedCopy, kernels: Mapping[str, object]) -> str | None:
        """Hold no longer what a packed copy gives back exactly; why not, where that cannot be.

        kernels   those that are packed, by id; one that refers to the memory of these tensors needs them
        returns   None when every tensor that the copy gives came back with each of its bytes
        """
        what = f"unpacking layout '{copy.layout}' of {copy.kernel}"
        try:
            made = _made(copy, self._outlines)
            differ = [name for name, tensor in made.items() if not same_bytes(self._held[name], tensor)]
        except Exception as error:  # whatever an adapter raises: then the tensors stay
            return f"{what} failed: {type(error).__name__}: {error}"
        if differ or "weight" not in made:
            return f"{what} gives {f'other bytes of {differ[0]}' if differ else 'no weight'}"
        holder = next((name for name, call in kernels.items() if holds(call, [self._held[one] for one in made])), None)
        if holder is not None:
            return f"{holder} refers to the checkpoint's own tensors"
        self._key = self.key
        self._copy, self._released = copy, tuple(made)
        self._held = {name: tensor for name, tensor in self._held.items() if name not in made}
        return None

    def keep(self, whole: Mapping[str, Tensor], kernel: object, *, needs: bool) -> None:
        """Hold again what was made for a kernel that works from it, for others of its kind.

        whole    what the kernel was constructed with, from `whole`
        needs    True: its layout is the checkpoint's; False: only if tensors of `whole` are found in it
        """
        if needs or holds(kernel, [whole[name] for name in self._released if name not in self._held]):
            self._held = dict(whole)


def _made(copy: PackedCopy, outlines: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a copy gives, in the dtypes and shapes of the outlines; usable in and out of inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        flat = {name: raw.contiguous().reshape(-1).view(torch.uint8) for name, raw in copy.unpack().items()}
        return {name: raw.view(outlines[name].dtype).reshape(outlines[name].shape) for name, raw in flat.items()}
