"""Layers whose weight a module reads without calling the layer: an adapter there would do nothing.

Found in the source of the classes that hold the layer: `self.<child>.weight` taken as a number in a method that
runs in a forward pass. Decorated methods are unwrapped, a name that stands for the child is followed, and a branch
that cannot be reached with the module's present attributes does not count.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from torch import nn

from lorax.architecture.reachable import reachable

READ = "its weight is read without a call of the layer"
SOMETIMES = "its weight is read without a call in some branches"
_ASIDE = {"__init__", "_init_weights", "init_weights", "reset_parameters", "_reset_parameters", "tie_weights",
          "extra_repr", "__setstate__", "__repr__"}  # fmt: skip
"""Methods that no forward pass runs."""
_META = {"dtype", "device", "shape", "ndim", "size", "dim", "numel", "requires_grad", "is_meta", "element_size"}
"""What is no number of the weight's."""
_OFF = ((nn.TransformerEncoderLayer, r"linear[12]"), (nn.TransformerEncoder, r"layers\.\d+\.linear[12]"))
"""Reads of torch's fast path, which installing an adapter switches off (`fast_path`)."""


def how_read(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Say how the modules around a layer read its weight.

    Args:
        name: the layer's.
        modules: {name: module} of the whole model.

    Returns:
        READ where a module reads the weight and never calls the layer, SOMETIMES where it does both, else None.
    """
    parts = name.split(".")
    found = None
    for depth in range(len(parts)):
        parent, child = modules.get(".".join(parts[:depth])), ".".join(parts[depth:])
        if parent is None or any(isinstance(parent, kind) and re.fullmatch(own, child) for kind, own in _OFF):
            continue
        reads, calls = _uses(parent, child)
        if reads and not calls:
            return READ
        found = SOMETIMES if reads else found
    return found


def _uses(parent: nn.Module, child: str) -> tuple[bool, bool]:
    """Return whether a reachable place of the parent's methods reads the child's weight, and whether one calls it."""
    reads = calls = False
    for uses in _methods(cast(Any, type(parent))):
        for use in uses:
            if use.pattern.fullmatch(child) and all(reachable(test, parent, want) for test, want in use.guards):
                reads, calls = reads or use.reads, calls or not use.reads
    return reads, calls


class _Use:
    """One place where a method reads the weight of a child, or calls it."""

    def __init__(self, child: str, reads: bool, guards: tuple[tuple[ast.expr, bool], ...]):
        self.pattern = re.compile(re.escape(child).replace(r"\*", r"\d+"))
        self.reads = reads
        self.guards = guards


@cache
def _methods(kind: Any) -> list[list[_Use]]:
    """Return the uses in every method of a class that a forward pass may run."""
    found: list[list[_Use]] = []
    overridden = set(_ASIDE)
    for base in kind.__mro__:
        for name, member in vars(base).items() if base is not nn.Module else ():
            if name in overridden or (function := _function(member)) is None:
                continue
            found.append(_in_source(function))
            if "__class__" not in function.__code__.co_freevars:  # it does not call super()
                overridden.add(name)
    return found


def _function(member: Any) -> Any:
    """Return the function that was written, under its decorators."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", member)  # static and class methods
    if not callable(member) or inspect.isclass(member):
        return None
    member = inspect.unwrap(member)
    return member if inspect.isfunction(member) else None


def _in_source(function: Any) -> list[_Use]:
    if "weight" not in _names(function.__code__):
        return []
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return []
    first = function.__code__.co_varnames[:1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (node.id,) == first:
            node.id = "self"
    visitor = _Uses()
    visitor.visit(tree)
    return visitor.uses


def _names(code: Any) -> set[str]:
    """Return the names and texts that a function and the functions in it hold."""
    names = {*code.co_names, *(value for value in code.co_consts if isinstance(value, str))}
    for inner in code.co_consts:
        if inspect.iscode(inner):
            names |= _names(inner)
    return names


class _Uses(ast.NodeVisitor):
    """Collects where `self.<child>.weight` is read and `self.<child>(...)` is called."""

    def __init__(self) -> None:
        self.uses: list[_Use] = []
        self._alias: dict[str, str] = {}
        self._guards: tuple[tuple[ast.expr, bool], ...] = ()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Follow `layer = self.layer`."""
        chain = self._chain(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._alias.pop(target.id, None)
                if chain:
                    self._alias[target.id] = chain
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """Follow `for layer in self.layers`."""
        chain = self._chain(node.iter)
        if chain and isinstance(node.target, ast.Name):
            self._alias[node.target.id] = f"{chain}.*"
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Remember what must hold for a branch to be reached."""
        self.visit(node.test)
        before = self._guards
        for branch, want in ((node.body, True), (node.orelse, False)):
            self._guards = (*before, (node.test, want))
            for statement in branch:
                self.visit(statement)
        self._guards = before

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """The same for `a if test else b`."""
        self.visit(node.test)
        before = self._guards
        for branch, want in ((node.body, True), (node.orelse, False)):
            self._guards = (*before, (node.test, want))
            self.visit(branch)
        self._guards = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A read, unless only its dtype, shape or the like is asked for, or it is written."""
        if node.attr in _META and self._weight_of(node.value):
            return
        chain = self._weight_of(node)
        if chain and isinstance(node.ctx, ast.Load):
            self.uses.append(_Use(chain, True, self._guards))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call of the child; or a question about the weight's class; or `getattr(self.child, "weight")`."""
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name in ("isinstance", "hasattr", "type", "id"):
            return
        if name == "getattr" and (chain := self._weight_of(node)):
            self.uses.append(_Use(chain, True, self._guards))
        chain = self._chain(node.func)
        if chain:
            self.uses.append(_Use(chain, False, self._guards))
        self.generic_visit(node)

    def _weight_of(self, node: ast.expr) -> str | None:
        """Return the child whose weight an expression is."""
        if isinstance(node, ast.Attribute) and node.attr == "weight":
            return self._chain(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            texts = [part.value for part in node.args[1:2] if isinstance(part, ast.Constant)]
            return self._chain(node.args[0]) if texts == ["weight"] else None
        return None

    def _chain(self, node: ast.expr) -> str | None:
        """Return "a.b" for `self.a.b`, or for a name that stands for it; an index becomes a part of its own."""
        if isinstance(node, ast.Name):
            return self._alias.get(node.id)
        if isinstance(node, ast.Subscript):
            inner = self._chain(node.value)
            key = str(node.slice.value) if isinstance(node.slice, ast.Constant) else "*"
            return f"{inner}.{key}" if inner else None
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return node.attr
        inner = self._chain(node.value)
        return f"{inner}.{node.attr}" if inner else None
