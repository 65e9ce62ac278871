"""Linears whose weight a model's own code reads: such code takes codes for numbers, whatever the layer would compute.

What is looked at is the source of the modules' methods, which costs no pass over the model and no numbers. Not seen are
a linear reached through a plain variable (`layer = self.gate; layer.weight`), getattr with a name made at run time,
functions outside of the modules' classes, and classes without source.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kerneltable.run.checkpoints.guards import truth

MAKERS = ("__init__", "_init", "init_", "reset_parameters", "extra_repr")
"""How the names of methods begin that are done, or never called, once a model is loaded."""

FOREIGN = ("torch.", "transformers.modeling_utils", "transformers.generation.", "transformers.integrations.")
"""Where the methods that every module or model inherits come from: none reads a linear's weight as numbers."""

HARMLESS = frozenset({"device", "shape", "is_meta", "ndim", "requires_grad", "size", "dim", "numel"})
"""What may be asked of a weight that holds codes; its dtype only to compare it, since nothing can be cast to it."""


@dataclass(frozen=True, slots=True)
class Read:
    """One place that reads a weight: the names on the way to it (numbers and subscripts left out), and the method.

    from_self  the way begins at `self`; else at a variable, and may begin anywhere
    """

    path: tuple[str, ...]
    from_self: bool
    method: str


def direct_reads(model: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Which of these linears have their weight read by the model's code, in its evaluation mode.

    model    with its config and the values that it branches on as they will be at a call
    names    names of linears in the model
    returns  name -> the method that reads it, such as "Router.forward"
    """
    wanted = {name: _words(name) for name in names}
    methods: dict[type, list[tuple[str, ast.AST]]] = {}
    found: dict[str, str] = {}
    for place, module in model.named_modules():
        kind = type(module)
        if kind not in methods:
            methods[kind] = list(_methods(kind))
        for read in _reads(methods[kind], module):
            for name, words in wanted.items():
                if name.startswith(f"{place}." if place else "") and _leads_to(read, words[len(_words(place)) :]):
                    found.setdefault(name, read.method)
    return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in name.split(".") if word and not word.isdecimal())


def _leads_to(read: Read, words: tuple[str, ...]) -> bool:
    return read.path == words if read.from_self else read.path == words[-len(read.path) :]


def _methods(kind: type) -> Iterator[tuple[str, ast.AST]]:
    """The methods of a class, inherited ones too, that name a weight: "Class.method" and the parsed source."""
    for owner in kind.__mro__:
        if f"{owner.__module__}.".startswith(FOREIGN) or owner is object:
            continue
        for name, member in vars(owner).items():
            function = member.fget if isinstance(member, property) else member
            if name.startswith(MAKERS) or not inspect.isfunction(function):
                continue
            try:
                text = textwrap.dedent(inspect.getsource(function))
                if ".weight" in text:
                    yield f"{owner.__name__}.{name}", ast.parse(text)
            except (OSError, TypeError, SyntaxError):  # no source, or not by itself, as for a lambda
                continue


def _reads(methods: Iterable[tuple[str, ast.AST]], module: torch.nn.Module) -> Iterator[Read]:
    for method, tree in methods:
        for path, from_self in _paths(tree, module):
            yield Read(path, from_self, method)


def _paths(node: ast.AST, module: torch.nn.Module) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every `way.to.linear.weight` that is read as numbers, in branches that this module may take."""
    if isinstance(node, ast.If | ast.IfExp):
        known = truth(node.test, module)
        parts: list[Any] = [node.test, node.body if known is not False else [], node.orelse if not known else []]
        for part in parts:
            for inner in part if isinstance(part, list) else [part]:
                yield from _paths(inner, module)
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
        way = _way(node.value)
        if way is not None and len(way) > 1:
            yield way[1:], way[0] == "self"
    for inner in ast.iter_child_nodes(node):
        if not _is_harmless(node, inner):
            yield from _paths(inner, module)


def _is_harmless(parent: ast.AST, node: ast.AST) -> bool:
    """True for a question about a weight that its codes answer as well as numbers would."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in HARMLESS
    if isinstance(parent, ast.Compare):
        return isinstance(node, ast.Attribute) and node.attr == "dtype"
    function = parent.func if isinstance(parent, ast.Call) else None
    return isinstance(function, ast.Name) and function.id in ("isinstance", "hasattr")


def _way(node: ast.AST) -> tuple[str, ...] | None:
    """The names of `a.b[0].c`, subscripts left out; None when it begins with anything but a name."""
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        elif not isinstance(node, ast.Subscript):
            return None
        node = node.value
    return (node.id, *reversed(names))
