"""Whether a branch of a method can be reached with the attributes that a module has now."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from typing import Any

from torch import nn

_UNKNOWN = object()


def reachable(test: ast.expr, module: nn.Module, want: bool) -> bool:
    """Return whether a test on the module's own attributes may have this outcome."""
    value = _value(test, module)
    return value is _UNKNOWN or bool(value) == want


def _value(node: ast.expr, module: Any) -> Any:
    """Return what an expression of constants and plain attributes of `self` is worth now, else _UNKNOWN."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute):
        value = _object(node, module)
        return value if isinstance(value, bool | int | float | str | None) else _UNKNOWN
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
        owner, name = _object(node.args[0], module), node.args[1]
        known = owner is not _UNKNOWN and isinstance(name, ast.Constant)
        return hasattr(owner, str(name.value)) if known and isinstance(name, ast.Constant) else _UNKNOWN
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _value(node.operand, module)
        return value if value is _UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        values = list(_values(node.values, module))
        decisive = isinstance(node.op, ast.Or)
        if any(value is not _UNKNOWN and bool(value) == decisive for value in values):
            return decisive
        return _UNKNOWN if any(value is _UNKNOWN for value in values) else not decisive
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        left, right = _values([node.left, *node.comparators], module)
        if type(node.ops[0]) in (ast.Is, ast.IsNot) and right is None:  # a child that is there or not
            left = _object(node.left, module)
        try:
            return _UNKNOWN if left is _UNKNOWN or right is _UNKNOWN else _COMPARE[type(node.ops[0])](left, right)
        except TypeError:  # an order between a text and a number
            return _UNKNOWN
    return _UNKNOWN


def _object(node: ast.expr, module: Any) -> Any:
    """Return what a chain of attributes of `self` stands for now, else _UNKNOWN; `training` changes."""
    if isinstance(node, ast.Name) and node.id == "self":
        return module
    if not isinstance(node, ast.Attribute) or node.attr == "training":
        return _UNKNOWN
    owner = _object(node.value, module)
    if isinstance(owner, nn.Module):  # nothing that is computed
        return {**owner._modules, **owner._parameters, **vars(owner)}.get(node.attr, _UNKNOWN)
    return _UNKNOWN if owner is _UNKNOWN else getattr(owner, node.attr, _UNKNOWN)


def _values(nodes: list[ast.expr], module: Any) -> Iterator[Any]:
    return (_value(node, module) for node in nodes)


_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
}  # fmt: skip
