"""The word `task.parts=[a,b]`: each task that it names is composed by Hydra, as a file of conf/task, under its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorax.errors import UserError
from lorax.tasks.group import EXAMPLE

_PARTS = re.compile(r"\+{0,2}task\.parts=(.*)", re.DOTALL)


def with_parts(words: Sequence[str]) -> list[str]:
    """Return the words with `task.parts=[a,b]` as Hydra takes it: `+task@task.parts.a=a`, and the same for b.

    Fields of a task can then be set like any other: `task.parts.a.n_test=100`. A sweep over several lists stays as it
    is; the words of each of its jobs are for this function.

    Raises:
        UserError: something else than names of tasks.
    """
    return [given for word in words for given in (_composed(word) if _PARTS.fullmatch(word) else [word])]


def _composed(word: str) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        [override] = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return [word]  # Hydra's own message
    if override.is_sweep_override():
        return [word]
    return [f"+task@task.parts.{name}={task}" for name, task in _named(override.value(), word).items()]


def _named(value: Any, word: str) -> dict[str, str]:
    """Return {name in the group: task}."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        if twice := next((name for name in value if value.count(name) > 1), None):
            raise UserError(
                f"task.parts: {twice} stands twice; give each a name: task.parts={{a: {twice}, b: {twice}}}"
            )
        value = dict(zip(map(str, value), value, strict=True))
    names = value.items() if isinstance(value, dict) else []
    if not names or not all(isinstance(task, str) and re.fullmatch(r"\w[\w-]*", str(name)) for name, task in names):
        raise UserError(f"{word[:80]}: names of tasks are needed; {EXAMPLE}")
    return {str(name): task for name, task in names}
