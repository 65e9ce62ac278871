"""What a condition in a module's source comes to for one module, where that can be said without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

Value = bool | int | float | str | None

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = MappingProxyType(
    {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
        ast.Is: operator.is_,
        ast.IsNot: operator.is_not,
    }
)


def truth(test: ast.expr, module: torch.nn.Module) -> bool | None:
    """Whether the condition holds for this module in evaluation mode; None when only a call would show.

    Understood are the module's plain attributes, constants, their comparisons, hasattr, and, or, not.
    """
    if isinstance(test, ast.BoolOp):
        parts = [truth(part, module) for part in test.values]
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in parts else None if None in parts else not decisive
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = truth(test.operand, module)
        return None if inner is None else not inner
    found = _value(test, module)
    return None if found is None else bool(found[0])


def _value(node: ast.expr, module: torch.nn.Module) -> tuple[Value] | None:
    """The value of an expression, in a tuple; None when it is not one of the plain kinds."""
    if isinstance(node, ast.Constant):
        return _plain(node.value)
    if isinstance(node, ast.Attribute):
        return _plain(_attribute(node, module))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _value(node.left, module), _value(node.comparators[0], module)
        compare = COMPARISONS.get(type(node.ops[0]))
        if left is None or right is None or compare is None:
            return None
        try:
            return (compare(left[0], right[0]),)
        except TypeError:
            return None
    return _has_attribute(node, module) if isinstance(node, ast.Call) else None


def _has_attribute(call: ast.Call, module: torch.nn.Module) -> tuple[Value] | None:
    """What `hasattr(self.a, "b")` answers."""
    asks = isinstance(call.func, ast.Name) and call.func.id == "hasattr" and len(call.args) == 2
    owner, name = (_attribute(call.args[0], module), call.args[1]) if asks else (NotImplemented, None)
    if owner is NotImplemented or not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        return None
    return (hasattr(owner, name.value),)


def _plain(found: object) -> tuple[Value] | None:
    return (found,) if found is None or isinstance(found, bool | int | float | str) else None


def _attribute(node: ast.expr, module: torch.nn.Module) -> object:
    """The object at `self.a.b`; NotImplemented when there is none, or the expression is another."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id != "self":
        return NotImplemented
    if names == ["training"]:
        return False
    found: object = module
    for name in reversed(names):
        try:
            found = getattr(found, name)
        except Exception:  # a property may raise anything
            return NotImplemented
    return found
