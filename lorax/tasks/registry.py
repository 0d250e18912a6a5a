"""The registry of task families: one frozen dataclass each, its fields are what conf/task may set."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from lorax.errors import UserError, near
from lorax.tasks.base import Task


class Family(Protocol):
    """A source of tasks; fields are the options."""

    name: str

    def load(self, data_seed: int) -> Task:
        """Read or draw the examples and split them; `data_seed` alone decides which and how."""


_FAMILIES: dict[str, str] = {
    "banking77": "lorax.tasks.intents",
    "clinc150": "lorax.tasks.intents",
    "gsm8k": "lorax.tasks.gsm8k",
    "jsonl": "lorax.tasks.own_data",
    "reasoning_gym": "lorax.tasks.reasoning",
    "snips": "lorax.tasks.intents",
    "text_classification": "lorax.tasks.own_data",
    "toy": "lorax.tasks.toy",
}
_REGISTERED: dict[str, type] = {}


def register(name: str) -> Callable[[type], type]:
    """Make a task family known as `name` (class decorator)."""

    def add(cls: type) -> type:
        _REGISTERED[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Return the names of all task families, sorted."""
    return sorted({*_FAMILIES, *_REGISTERED})


def build(spec: Mapping[str, Any]) -> Family:
    """Check a task's configuration without reading or drawing data.

    Args:
        spec: the mapping of conf/task/*.yaml: `name`, an optional `family` (default: the name), and
            the family's own fields.

    Raises:
        UserError: unknown family or field, with near misses; a value the family does not take.
    """
    name = spec.get("family") or spec.get("name")
    if name not in names():
        raise UserError(f"task={name}: unknown task family; {near(name, names())}")
    if name not in _REGISTERED:
        importlib.import_module(_FAMILIES[name])
    family = _REGISTERED[name]
    own = {key: value for key, value in spec.items() if key != "family"}
    known = [item.name for item in fields(family)]
    for key, value in own.items():
        if key not in known:
            raise UserError(f"task.{key}={value}: {name} has no such field; {near(key, known)}")
        _positive(name, key, value)
    return family(**own)


def load(spec: Mapping[str, Any], data_seed: int = 0) -> Task:
    """Load a task: the same spec and data seed give the same examples in the same splits.

    Args:
        spec: the mapping of conf/task/*.yaml. Where `$LORAX_DATA/<name>` is a folder, it stands in for
            the hub: the data's digest, not their place, enters a run's identity.
        data_seed: fixes the pool and its splits.

    Raises:
        UserError: a bad option, a missing file, an unreadable row (with its line), too few examples.
    """
    local = Path(os.environ.get("LORAX_DATA", "")) / str(spec.get("name"))
    if "path" in spec and os.environ.get("LORAX_DATA") and local.is_dir() and not Path(str(spec["path"])).exists():
        spec = {**spec, "path": str(local)}
    return build(spec).load(data_seed)


_COUNTS = {"n_train": 1, "n_validation": 1, "n_test": 1, "n_heldout": 0, "shots": 0, "steps": 1,
           "batch_size": 1, "max_new_tokens": 1}  # fmt: skip


def _positive(family: str, key: str, value: Any) -> None:
    if key in _COUNTS and value is not None:
        if not isinstance(value, int) or isinstance(value, bool) or value < _COUNTS[key]:
            raise UserError(f"task.{key}={value}: {family} takes an integer of at least {_COUNTS[key]}")
    if key in ("lr", "head_lr") and value is not None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise UserError(f"task.{key}={value}: must be a positive number")
