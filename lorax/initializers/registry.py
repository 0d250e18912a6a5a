"""The registry of initialisers: the modules of this folder, and other packages' entry points; no list to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lorax.errors import UserError, near
from lorax.registry import Registry, build_typed

ENTRY_POINTS = "lorax.initializers"
"""Group of entry points by which another package brings initialisers: each names a module or a registered class."""
NOT_FIELDS = frozenset({"name", "lr_prior"})  # keys of conf/init/<name>.yaml that are not the method's

_methods: Registry[Any] = Registry("init", "lorax.initializers", ENTRY_POINTS)


def register(name: str) -> Callable[[Any], Any]:
    """Return a class decorator that makes an initialiser known under `name`.

    Raises:
        UserError: another class already has that name.
    """

    def enter(cls: Any) -> Any:
        cls.name = name
        return _methods.register(name)(cls)

    return enter


def names() -> list[str]:
    """Return the registered names, sorted.

    Examples:
        >>> "pissa" in names()
        True
    """
    return _methods.names()


def get(name: str) -> Any:
    """Return the class registered under `name`.

    Raises:
        UserError: unknown name; the line holds the near misses.
    """
    return _methods.get(name)


def build(name: str, *, shared: Mapping[str, Any] | None = None, own: Mapping[str, Any] | None = None) -> Any:
    """Build an initialiser from the keys that all methods share and the method's own.

    Args:
        name: registered name.
        shared: rank, alpha, scaling, zeta, zeta_rule, gamma; those the method lacks, and None, are
            dropped, so that a sweep over zeta does not split LoRA.
        own: the method's fields; they win over `shared`. The YAML keys `name` and `lr_prior` are skipped.

    Raises:
        UserError: unknown method, a field that the method lacks, or a value out of bounds.

    Examples:
        >>> build("lora", shared={"rank": 4, "zeta": 16}).eta
        4.0
    """
    cls = get(name)
    known = [field.name for field in fields(cls)]
    given = {key: value for key, value in (own or {}).items() if key not in NOT_FIELDS}
    for key in given:
        if key not in known:
            listed = ", ".join(known) or "none"
            hint = near(key, known) if known else ""
            hint = f"; {hint}" if hint.startswith("did") else ""
            raise UserError(f"init={name} has no field {key!r} (its fields: {listed}){hint}")
    common = {key: value for key, value in (shared or {}).items() if key in known and value is not None}
    return build_typed(cls, given, "init", common)


def instance(init: Any, given: Mapping[str, Any]) -> Any:
    """Return an initialiser that was given as an instance.

    Args:
        init: as given.
        given: the fields that came beside it.

    Raises:
        UserError: it is no initialiser, or fields were given beside it.
    """
    if isinstance(init, type) or not is_dataclass(init):
        what = f"the class {init.__name__}" if isinstance(init, type) else repr(init)
        raise UserError(f"init={what}: a registered name (lorax.names() lists them) or an instance is needed")
    if given:
        raise UserError(f"init is an instance with its own fields; {', '.join(given)} cannot be given beside it")
    return init


def consumed(initializer: Any) -> dict[str, Any]:
    """Return what a run consumes of its initialiser: name, version, resolved fields, eta.

    Fields without a value, and those the instance declares `idle` (a width that the plain pattern
    ignores), are left out: two instances with equal results are equal here.

    Examples:
        >>> consumed(build("svft", own={"pattern": "plain", "width": 3}))
        {'name': 'svft', 'version': 1, 'pattern': 'plain', 'eta': 1.0}
    """
    values = {field.name: getattr(initializer, field.name) for field in fields(initializer)}
    kept = {key: value for key, value in values.items() if value is not None and key not in initializer.idle}
    eta = {"eta": initializer.eta} if hasattr(initializer, "eta") else {}
    return {"name": initializer.name, "version": initializer.version, **kept, **eta}
