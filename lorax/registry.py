"""Classes by name: methods, task families, model families. A class registers itself in the file that defines it.

The folder of a package, with its subfolders, is the list. When a name is looked up, the module of that name is
imported if there is one; else every module there whose name does not begin with an underscore, and then other packages'
entry points.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from lorax.errors import UserError, near

Class = TypeVar("Class", bound=type)
Interface = TypeVar("Interface")


def check_types(cls: type, values: Mapping[str, Any], group: str) -> None:
    """Refuse values that are not of the kind that their fields are annotated with.

    A field whose annotation cannot be read, or names a class of its own, is left to the class.

    Raises:
        UserError: names group, field, value and the kinds that are taken.
    """
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError):
        return
    for key, value in values.items():
        kinds = _kinds(hints.get(key, Any))
        if kinds and not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
            raise UserError(f"{group}.{key}={value}: must be {wanted}")


def build_typed(cls: type, values: Mapping[str, Any], group: str, others: Mapping[str, Any] | None = None) -> Any:
    """Return the instance; a value that the class itself refuses is refused in the class's words.

    Args:
        cls: a dataclass.
        values: its fields as a user gave them; their kinds are checked.
        group: how a message calls the class's fields.
        others: further fields, which are right.

    Raises:
        UserError: a value of the wrong kind, or one that the class does not take.
    """
    try:
        built = cls(**{**(others or {}), **values})
    except UserError:
        raise
    except Exception:
        check_types(cls, values, group)
        raise
    check_types(cls, values, group)
    return built


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null",
    list: "a list", tuple: "a list", dict: "a mapping", Sequence: "a list", Mapping: "a mapping",
}  # fmt: skip


def _kinds(hint: Any) -> list[Any]:
    """Return the plain types that an annotation allows; nothing where one of them is not plain."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts]
    return kinds if all(isinstance(kind, type) and kind in _WORDS for kind in kinds) else []


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


class Registry(Generic[Interface]):
    """The registered classes of one package; each is a frozen dataclass whose fields are its options.

    Args:
        group: the configuration group that names them, for messages: task, model.
        package: where their modules are, such as `lorax.tasks`.
        entry_points: group of entry points by which another package brings classes: each names a module that
            registers them, or a registered class.
    """

    def __init__(self, group: str, package: str, entry_points: str | None = None):
        self.group, self.package, self.entry_points = group, package, entry_points
        self._classes: dict[str, type] = {}
        self._is_complete = False

    def register(self, name: str) -> Callable[[Class], Class]:
        """Return a class decorator that makes a class known under `name`.

        Raises:
            UserError: another class already has that name.
        """

        def enter(cls: Class) -> Class:
            taken = self._classes.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(f"{self.group}={name} is taken by {taken.__module__}.{taken.__qualname__}")
            self._classes[name] = cls
            return cls

        return enter

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self._import_all()
        return sorted(self._classes)

    def get(self, name: str) -> type:
        """Return the class registered under `name`.

        Raises:
            UserError: unknown name; the line holds the near misses.
        """
        if name not in self._classes and str(name).isidentifier():
            module = next((place for place in self._modules() if place.rpartition(".")[2] == name), None)
            if module is not None:
                importlib.import_module(module)
        if name not in self._classes and name not in self.names():
            raise UserError(f"{self.group}={name} is unknown: {near(name, self.names())}")
        return self._classes[name]

    def build(self, spec: Mapping[str, Any]) -> Interface:
        """Build an instance from the mapping of a YAML file, without reading what it stands for.

        Args:
            spec: `name`, an optional `family` (the registered name, where it is not `name`), and the class's fields.

        Raises:
            UserError: unknown name or field, with the near misses; a value that the class does not take.
        """
        name = spec.get("family") or spec.get("name")
        if not isinstance(name, str):
            raise UserError(f"{self.group}={name}: must be the name of one; {near(name, self.names())}")
        cls = self.get(name)
        values = {key: value for key, value in spec.items() if key != "family"}
        known = [item.name for item in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise UserError(f"{self.group}.{key}={value}: {name} has no such field; {near(key, known)}")
        return build_typed(cls, values, self.group)

    def _import_all(self) -> None:
        """Import the package's modules, then other packages' entry points; of these one that fails is left out."""
        if self._is_complete:
            return
        for module in self._modules():
            importlib.import_module(module)
        self._is_complete = True
        for entry in entry_points(group=self.entry_points) if self.entry_points else ():
            try:
                entry.load()
            except Exception as error:
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{self.group}={entry.name} ({entry.value}) cannot be loaded: {line}", stacklevel=4)

    def _modules(self) -> list[str]:
        """Return the names of the modules in the package's folder and its subfolders."""
        found: list[str] = []
        folders = [self.package]
        for folder in folders:
            for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
                if not module.name.startswith("_"):
                    (folders if module.ispkg else found).append(f"{folder}.{module.name}")
        return found
