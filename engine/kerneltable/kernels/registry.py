"""The registry of kernels: the files of this folder, and packages that announce `kerneltable.kernels`.

A kernel id is a key here; the table never names an import path. Listing ids and reading constructor signatures
imports no kernel (and no torch): the signature is read from the source with `ast`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kerneltable.errors import KernelTableError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

GROUP = "kerneltable.kernels"
PACKAGE = "kerneltable.kernels"
CHIP = "chip"
"""A constructor parameter that is no tensor of the layer: what the table says of the device."""

FEATURES = "features"
"""Another one: the features of its architecture."""

PACKED = "packed"
"""Another one: the attribute `packed` of a kernel of the same layout that packed the same layer, or None."""

UNPACK = "unpack"
"""A static method of a kernel that packs: the way back from `packed` to the checkpoint's tensors."""

NOT_KERNELS = frozenset({"__init__", "contract", "registry"})


def ids() -> tuple[str, ...]:
    """The ids of all registered kernels, sorted.

    errors    KernelTableError when a package announces an id that exists already
    """
    return tuple(sorted((*_shipped(), *_announced())))


def unregistered(kernels: Iterable[str]) -> tuple[str, ...]:
    """Those of these kernels that no file and no installed package registers, in their order.

    errors    KernelTableError when a package announces an id that exists already
    """
    shipped = _shipped()
    others = [kernel for kernel in kernels if kernel not in shipped]
    announced = _announced() if others else {}
    return tuple(kernel for kernel in others if kernel not in announced)


def signatures() -> dict[str, Mapping[str, bool]]:
    """Each kernel's constructor parameters: name -> True when it is required.

    returns   without self, the problem, and what no row lists: `chip` and `packed`
    errors    KernelTableError when a kernel's source or its `class Kernel` cannot be found or read
    """
    found: dict[str, Mapping[str, bool]] = {name: _signature(text, name) for name, text in _shipped().items()}
    for name, entry in _announced().items():
        found[name] = _signature(_announced_source(entry), name, entry.attr or "Kernel")
    return dict(sorted(found.items()))


def load(id: str) -> Any:
    """The class of a kernel, see contract.BoundKernel; importing it may import torch.

    errors    KernelTableError for an id that is not registered; ImportError of what the kernel itself needs
    """
    from importlib import import_module

    if id in _shipped():
        return _class_of(import_module(f"{PACKAGE}.{id}"), id)
    entry = _announced().get(id)
    if entry is None:
        from kerneltable.names import hint

        raise KernelTableError(f"kernel {str(id)[:100]!r} is not registered; {hint(str(id), ids())}")
    return _class_of(import_module(entry.module), id, entry.attr or "Kernel")


def _class_of(module: ModuleType, kernel: str, name: str = "Kernel") -> Any:
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise KernelTableError(f"kernel '{kernel}': {module.__name__} has no class {name}; see kernels/contract.py")
    return found


def _shipped() -> dict[str, str]:
    """Kernel id -> source text, for each kernel file of this folder; works from a zip file too."""
    from importlib.resources import files

    found = {}
    for file in files(PACKAGE).iterdir():
        name, dot, ending = file.name.partition(".")
        if dot and ending == "py" and name not in NOT_KERNELS and not name.startswith("_"):
            found[name] = file.read_text(encoding="utf-8")
    return found


def _announced() -> dict[str, EntryPoint]:
    """Kernel id -> entry point, for each kernel that an installed package announces."""
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    shipped: dict[str, str] | None = None
    for entry in entry_points(group=GROUP):
        shipped = _shipped() if shipped is None else shipped
        earlier = found.get(entry.name)
        if entry.name in shipped or (earlier is not None and earlier.value != entry.value):
            other = "kerneltable itself" if entry.name in shipped else f"'{_owner(earlier)}'"
            raise KernelTableError(
                f"kernel '{entry.name}' is announced by package '{_owner(entry)}' and by {other}; "
                "an id belongs to one kernel: rename or uninstall one of them"
            )
        found[entry.name] = entry
    return found


def _owner(entry: EntryPoint | None) -> str:
    return entry.dist.name if entry is not None and entry.dist is not None else "unknown"


def _announced_source(entry: EntryPoint) -> str:
    """The source of an announced kernel, found without importing it or its package."""
    from importlib.util import find_spec
    from pathlib import Path

    top, *rest = entry.module.split(".")
    spec = find_spec(top)  # a top-level name: nothing is imported
    roots = [Path(folder).joinpath(*rest) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = (
        [file for root in roots for file in (root.with_name(root.name + ".py"), root / "__init__.py")] if rest else []
    )
    files += [root / "__init__.py" for root in roots] if not rest else []
    if spec is not None and not rest and spec.origin:
        files.insert(0, Path(spec.origin))
    for file in files:
        if file.suffix == ".py" and file.is_file():
            return file.read_text(encoding="utf-8")
    raise KernelTableError(
        f"kernel '{entry.name}' of package '{_owner(entry)}': no Python source of module '{entry.module}' was found; "
        "reinstall or uninstall the package"
    )


def _signature(source: str, kernel: str, class_name: str = "Kernel") -> Mapping[str, bool]:
    """Parameters of the constructor after self and problem, read from source; *args and **kwargs name none."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise KernelTableError(f"kernel '{kernel}': its source is no Python ({error}); correct the file") from None
    owner = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == class_name), None)
    members = owner.body if owner else []
    build = next((node for node in members if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if build is None:
        raise KernelTableError(
            f"kernel '{kernel}': a class {class_name} with its own __init__ was wanted; found none; "
            "see kernels/contract.py"
        )
    takes = build.args
    positional = [*takes.posonlyargs, *takes.args]
    required = len(positional) - len(takes.defaults)
    found = {name.arg: place < required for place, name in enumerate(positional)}
    found |= {name.arg: default is None for name, default in zip(takes.kwonlyargs, takes.kw_defaults, strict=True)}
    for name in (*(leading.arg for leading in positional[:2]), CHIP, FEATURES, PACKED):  # self and problem
        found.pop(name, None)
    return found
