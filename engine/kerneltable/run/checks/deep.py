"""Loading and constructing every kernel of a table on this machine, with tensors that have no storage."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kerneltable.errors import KernelInputError, KernelTableError, KernelUnavailable, LayerError
from kerneltable.formats import FORMATS
from kerneltable.kernels import registry
from kerneltable.model import Kernel, OneOf, Problem, Table
from kerneltable.run.layer_data import scale_shape
from kerneltable.run.packing import pack
from kerneltable.select.boxes import meet
from kerneltable.select.region_text import whole
from kerneltable.select.regions import simplest_problem
from kerneltable.select.space import about_problems, space_of
from kerneltable.select.survey import Proof

WRONG = (TypeError, KernelInputError, LayerError, AttributeError, KeyError)
"""What a constructor raises that does not fit its row; other errors may come from tensors without storage."""


def construct_all(table: Table) -> Iterator[Proof]:
    """KT520, KT521 and KT523: each row's kernel, loaded and constructed for the smallest problem of each scheme."""
    for kernel in table.kernels.values():
        path = ("kernels", kernel.id)
        try:
            adapter = registry.load(kernel.id)
        except (ImportError, OSError, KernelUnavailable) as error:
            yield Proof("KT520", f"'{kernel.id}' cannot be loaded here: {_first(error)}", kernel.mark, path, "")
            continue
        except KernelTableError as error:
            yield Proof("KT521", f"'{kernel.id}': {_first(error)}", kernel.mark, path, "see kernels/contract.py")
            continue
        for problem in smallest_problems(table, kernel):
            found = _construct(table, kernel, adapter, problem)
            if found is not None:
                yield found
                break


def _construct(table: Table, kernel: Kernel, adapter: object, problem: Problem) -> Proof | None:
    path = ("kernels", kernel.id)
    try:
        pack(table, kernel.id, adapter, problem, meta_layer(table, problem))
    except (ImportError, OSError, KernelUnavailable) as error:
        message = f"'{kernel.id}' cannot be constructed here: {_first(error)}"
        return Proof("KT520", message, kernel.mark, path, "install what is missing, or check elsewhere")
    except WRONG as error:
        message = f"'{kernel.id}' does not take {problem.scheme}, n={problem.n}, k={problem.k}: {_first(error)}"
        return Proof("KT521", message, kernel.mark, path, "correct the row or the constructor")
    except Exception as error:  # whatever a foreign library says about tensors without storage
        message = f"'{kernel.id}' asks its device before it can be constructed: {_first(error)}"
        return Proof("KT523", message, kernel.mark, path, "check it on a machine with the device")
    return None


def smallest_problems(table: Table, kernel: Kernel) -> Iterator[Problem]:
    """The simplest problem that a row accepts in each of its schemes, with n and k of at least 1."""
    named = [p.values for p in kernel.accepts if isinstance(p, OneOf) and p.key == "accepts.schemes"]
    for scheme in table.schemes:
        if named and scheme not in named[0]:
            continue
        space = space_of(scheme, table, also=kernel.accepts)
        box = space.box(p for p in kernel.accepts if about_problems(p))
        both = None if box is None else meet(box, whole(space, table))
        if both is not None:
            yield simplest_problem(space, [both])


def meta_layer(table: Table, problem: Problem) -> dict[str, torch.Tensor]:
    """The tensors of a layer, under the scheme's names, on the meta device.

    problem    completed
    """
    scheme = table.schemes[problem.scheme]
    scale = getattr(torch, FORMATS[problem.weight_scale or "f32"].torch_dtype)
    weight = getattr(torch, FORMATS[scheme.weight.formats[0]].torch_dtype)
    tensors = {
        "weight": torch.empty(problem.n, problem.k, dtype=weight, device="meta"),
        "weight_scale": torch.empty(scale_shape(problem), dtype=scale, device="meta"),
    }
    if problem.input_scaling == "static":
        tensors["input_scale"] = torch.empty(1, device="meta")
    return tensors


def _first(error: BaseException) -> str:
    """The first line of an error, shortened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
