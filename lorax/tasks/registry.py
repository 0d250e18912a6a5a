"""What a task family is, and the registry of them: a frozen dataclass each, whose fields conf/task may set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lorax.errors import UserError
from lorax.registry import Registry
from lorax.tasks.base import Task


class Family(Protocol):
    """A source of tasks; fields are the options."""

    name: str

    def load(self, data_seed: int) -> Task:
        """Read or draw the examples and split them; `data_seed` alone decides which and how."""


_families: Registry[Family] = Registry("task", "lorax.tasks")
register, names, get = _families.register, _families.names, _families.get


def build(spec: Mapping[str, Any]) -> Family:
    """Check a task's configuration without reading or drawing data.

    Args:
        spec: the mapping of conf/task/*.yaml: `name`, an optional `family` (default: the name), and
            the family's own fields.

    Raises:
        UserError: unknown family or field, with near misses; a value the family does not take.
    """
    for key, value in spec.items():
        _check_number(spec.get("family") or spec.get("name"), key, value)
    return _families.build(spec)


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


# The least value of every whole number that families have in common.
_COUNTS = {"n_train": 1, "n_validation": 1, "n_test": 1, "n_heldout": 0, "shots": 0, "steps": 1,
           "batch_size": 1, "max_new_tokens": 1}  # fmt: skip
_MOST = 10**6  # examples are drawn, and kept in memory, before anything else is known


def _check_number(family: str | None, key: str, value: Any) -> None:
    if key in _COUNTS and value is not None:
        if not isinstance(value, int) or isinstance(value, bool) or value < _COUNTS[key]:
            raise UserError(f"task.{key}={value}: {family} takes an integer of at least {_COUNTS[key]}")
        if value > _MOST:
            raise UserError(f"task.{key}={value}: must be at most {_MOST:,}")
    if key in ("lr", "head_lr") and value is not None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise UserError(f"task.{key}={value}: must be a positive number")
