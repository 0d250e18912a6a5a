"""A group of tasks: several ordinary tasks, which one run learns together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import SPLITS, Example, Task
from lorax.tasks.registry import build, load, register

EXAMPLE = "task=group task.parts=[banking77,clinc150]"


@register("group")
@dataclass(frozen=True, kw_only=True)
class TaskGroup:
    """Several tasks of one kind; a run over them has one score a task, and the mean of these, over tasks."""

    name: str = "group"
    parts: Mapping[str, Any] | None = None
    """{a name: the task's own fields, as conf/task has them}."""
    weights: Sequence[float] | None = None
    """Of the tasks' losses in the loss of the run, in the order of `parts`, divided by their sum; None: equal."""
    lr: float | None = None
    """Base learning rate; None: the smallest of the tasks'."""
    head_lr: float | None = None
    """Learning rate of the heads; None: the smallest of the tasks'."""
    steps: int | None = None
    """None: the most of the tasks'."""
    batch_size: int | None = None
    """Examples of each task in a step; None: the fewest of the tasks'."""

    def __post_init__(self) -> None:
        """Check the parts, without reading data, and the weights."""
        for name, spec in specs(self.parts).items():
            if is_group(spec):
                raise UserError(f"task.parts.{name}: a group of tasks; a group holds single tasks")
            _named(name, lambda spec=spec: build(spec))
        weights, count = self.weights, len(self.parts or {})
        if weights is None:
            return
        if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != count:
            raise UserError(f"task.weights={weights}: a list of {count} numbers is needed, one a task")
        for weight in weights:
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight <= 0:
                raise UserError(f"task.weights={list(weights)}: {weight} is no finite number above 0")

    def load(self, data_seed: int) -> Task:
        """Load every task with the same data seed; the group's splits are theirs, one after another.

        Raises:
            UserError: no task is named, tasks of several kinds, or one of them cannot be loaded.
        """
        if not self.parts:
            raise UserError(f"task=group: no task is named; {EXAMPLE}")
        found = {
            name: _named(name, lambda spec=spec: load(spec, data_seed)) for name, spec in specs(self.parts).items()
        }
        tasks = tuple(replace(task, name=name) for name, task in found.items())
        for what in ("kind", "direction"):
            by_task = {task.name: getattr(task, what) for task in tasks}
            if len(set(by_task.values())) > 1:
                listed = ", ".join(f"{name} {value}" for name, value in by_task.items())
                raise UserError(f"task.parts: one {what} for all tasks of a group is needed, not {listed}")
        metrics = list(dict.fromkeys(task.metric for task in tasks))
        given = [float(weight) for weight in self.weights or [1.0] * len(tasks)]
        splits: dict[str, Any] = {
            split: tuple(each for task in tasks for each in _told_apart(task, split)) for split in SPLITS
        }
        head_rates = [task.head_lr for task in tasks if task.head_lr is not None]
        return Task(
            name="+".join(found) if self.name == "group" else self.name,
            kind=tasks[0].kind,
            **splits,
            parts=tasks,
            weights=tuple(weight / sum(given) for weight in given),
            metric=f"mean over {len(tasks)} task{'s' * (len(tasks) > 1)} of {' and '.join(metrics)}",
            direction=tasks[0].direction,
            lr=self.lr or min(task.lr for task in tasks),
            head_lr=self.head_lr or min(head_rates, default=None),
            steps=self.steps or max(task.steps for task in tasks),
            batch_size=self.batch_size or min(task.batch_size for task in tasks),
            notes=_notes(tasks),
        )


def is_group(spec: Mapping[str, Any]) -> bool:
    """Return whether a task's configuration is that of a group of tasks."""
    return (spec.get("family") or spec.get("name")) == "group"


def parts_of(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {name: configuration} of the tasks of a group; nothing for a single task."""
    return specs(spec.get("parts")) if is_group(spec) else {}


def specs(parts: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return {name: configuration}: each part's own, under its name in the group.

    Raises:
        UserError: a part without fields.
    """
    if parts is not None and not isinstance(parts, Mapping):
        raise UserError(f"task.parts={parts}: names of tasks are needed; {EXAMPLE}")
    found = {}
    for name, spec in (parts or {}).items():
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise UserError(f"task.parts.{name}: the fields of a task are needed, its name among them; {EXAMPLE}")
        found[str(name)] = {**spec, "name": str(name), "family": spec.get("family") or spec["name"]}
    return found


def _told_apart(task: Task, split: str) -> list[Example]:
    return [replace(each, meta={**each.meta, "task": task.name}) for each in task.examples(split)]


def _notes(tasks: Sequence[Task]) -> dict[str, Any]:
    told = [f"{task.name}: {task.notes['data']}" for task in tasks if "data" in task.notes]
    return {"data": "; ".join(told)} if told else {}


def _named(name: str, action: Any) -> Any:
    """Return `action()`; what it refuses is refused with the part's name."""
    try:
        return action()
    except UserError as error:
        line = str(error)
        inside = line.removeprefix("task.")
        raise UserError(f"task.parts.{name}.{inside}" if inside != line else f"task.parts.{name}: {line}") from None
