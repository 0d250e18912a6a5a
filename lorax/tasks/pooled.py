"""A pool of tasks: the examples of several ordinary tasks, shuffled together; one task, with a score for each part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorax.errors import UserError
from lorax.records import canonical
from lorax.tasks.base import SPLITS, Example, Task, shuffled
from lorax.tasks.classes import check_classes
from lorax.tasks.registry import build, load, register

EXAMPLE = "task.parts=[banking77,clinc150]"
ONE = ("kind", "direction", "system")
"""What all parts of a pool have in common: it is asked of the pool as a whole."""


@dataclass(frozen=True, kw_only=True)
class PooledTask(Task):
    """The pool; `Example.meta["task"]` names the part that an example is from."""

    sources: Mapping[str, Task] = field(default_factory=dict)
    """{part: the task as it is alone}."""

    def score(self, example: Example, completion: str) -> dict[str, Any]:
        """Score one completion as its part does; the answer names the part, as `task`."""
        part = example.meta["task"]
        return {"task": part, **self.sources[part].score(example, completion)}

    @property
    def majority(self) -> float | None:
        """The mean of the parts' own; None where one has none."""
        known = [part.majority for part in self.sources.values()]
        shares = [share for share in known if share is not None]
        return sum(shares) / len(shares) if known and len(shares) == len(known) else None

    @property
    def digest(self) -> str:
        """Digest of the pool, of which part each example is from, and of how the parts score."""
        rules = {name: [part.strict, part.tolerant, part.version] for name, part in self.sources.items()}
        of = [[example.meta["task"] for example in self.examples(split)] for split in SPLITS]
        return hashlib.sha256(canonical([super().digest, rules, of]).encode()).hexdigest()[:32]


@register("pooled")
@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Several tasks of one kind on which one adapter is trained, without being told which is which."""

    name: str = "pooled"
    parts: Mapping[str, Any] | None = None
    """{a name: the task's own fields, as conf/task has them}."""
    lr: float | None = None
    """Base learning rate; None: the smallest of the parts'."""
    head_lr: float | None = None
    """Learning rate of a fresh head; None: the smallest of the parts'."""
    steps: int | None = None
    """None: the most of the parts'."""
    batch_size: int | None = None
    """None: the largest of the parts'."""

    def __post_init__(self) -> None:
        """Check the parts without reading data."""
        if self.parts is not None and not isinstance(self.parts, Mapping):
            raise UserError(f"task.parts={self.parts}: the fields of each task are needed: task=pooled {EXAMPLE}")
        for name, spec in (self.parts or {}).items():
            if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
                raise UserError(f"task.parts.{name}: the fields of a task are needed: task=pooled {EXAMPLE}")
            if "parts" in spec:
                raise UserError(f"task.parts.{name}: has parts itself; a pool is made of single tasks")
            _named(name, lambda spec=spec: build(spec))

    def load(self, data_seed: int) -> PooledTask:
        """Load every part with the same data seed and put their splits together.

        A prompt is in one split: in test before validation, validation before heldout, heldout before train, whatever
        its part; within a split that trains, in the first part that has it. The tests of the parts stay whole.

        Raises:
            UserError: fewer than two parts, parts of different kinds or with different system texts, or one that
                cannot be loaded.
        """
        parts = self.parts or {}
        if len(parts) < 2:
            raise UserError(f"task={self.name}: at least two parts are needed, not {len(parts)}: {EXAMPLE}")
        tasks = {str(name): _named(name, lambda spec=spec: load(spec, data_seed)) for name, spec in parts.items()}
        for what in ONE:
            by_part = {name: getattr(task, what) for name, task in tasks.items()}
            if len(set(by_part.values())) > 1:
                listed = ", ".join(f"{name}: {str(value)[:60]}" for name, value in by_part.items())
                raise UserError(f"task.parts: a pool has one {what} for all, not {listed}")
        found, dropped = _pooled(tasks, data_seed)
        splits: dict[str, Any] = dict(found)
        labels = _labels(tasks)
        if labels is not None:
            number = {label: index for index, label in enumerate(labels)}
            splits = {
                split: tuple(replace(each, label=number[each.answer]) for each in examples)
                for split, examples in found.items()
            }
        first, rates = next(iter(tasks.values())), [task.head_lr for task in tasks.values() if task.head_lr]
        metrics = dict.fromkeys(task.metric for task in tasks.values())
        told = [f"{name}: {task.notes['data']}" for name, task in tasks.items() if "data" in task.notes]
        return PooledTask(
            name="_".join(["pooled", *tasks]) if self.name == "pooled" else self.name,
            **{what: getattr(first, what) for what in ONE},
            **splits,
            labels=labels,
            sources=tasks,
            metric=f"mean over {len(tasks)} tasks of {' and '.join(metrics)}",
            max_new_tokens=max(task.max_new_tokens for task in tasks.values()),
            lr=self.lr or min(task.lr for task in tasks.values()),
            head_lr=self.head_lr or min(rates, default=None),
            steps=self.steps or max(task.steps for task in tasks.values()),
            batch_size=self.batch_size or max(task.batch_size for task in tasks.values()),
            notes={"data": "; ".join([*told, f"pooled: dropped {dropped:,} prompts that stand in two parts"])},
        )


def _pooled(tasks: Mapping[str, Task], data_seed: int) -> tuple[dict[str, tuple[Example, ...]], int]:
    """Return the splits of all parts together, in an order without regard to parts, and how many were left out."""
    splits: dict[str, tuple[Example, ...]] = {}
    seen: set[str] = set()
    dropped = 0
    for split in ("test", "validation", "heldout", "train"):
        kept: list[Example] = []
        here: set[str] = set()
        for name, task in tasks.items():
            for example in task.examples(split):
                twice = example.id in here
                if example.id in seen or (twice and split != "test"):
                    dropped += 1
                    continue
                here.add(example.id)
                own = f"{example.id}-{name}" if twice else example.id
                kept.append(replace(example, id=own, meta={**example.meta, "task": name}))
        seen |= here
        splits[split] = tuple(shuffled(kept, f"pool {data_seed}" if split == "train" else "pool"))
    return splits, dropped


def _labels(tasks: Mapping[str, Task]) -> tuple[str, ...] | None:
    """Return the classes of all parts, sorted, each name once; None for generation."""
    if any(task.labels is None for task in tasks.values()):
        return None
    names = {label for task in tasks.values() for label in task.labels or ()}
    check_classes(names, "task.parts")
    return tuple(sorted(names))


def _named(name: str, action: Any) -> Any:
    """Return `action()`; what it refuses is refused with the part's name."""
    try:
        return action()
    except UserError as error:
        line = str(error)
        inside = line.removeprefix("task.")
        raise UserError(f"task.parts.{name}.{inside}" if inside != line else f"task.parts.{name}: {line}") from None
