"""What a study is made of: arms, tuning, seeds, margin, blocks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lorax.errors import UserError, near


@dataclass(frozen=True)
class Match:
    """Which field of an arm is chosen so that it meets another arm's trainable parameters."""

    to: str
    """Label of the arm whose count is met."""
    key: str
    """The override that is searched: `rank`, `init.width`."""
    low: int = 1
    high: int = 1024


@dataclass(frozen=True)
class Arm:
    """One row of the comparison."""

    label: str
    init: str
    """Name of the initialiser."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """What sets the arm apart: rank, alpha, scaling, `init.pattern`, ..."""
    trained: bool = True
    """False for a frozen base: no tuning, no cost probe, one final run that meets all seeds."""
    lr: float | None = None
    """Centre of its learning rates in every task; None: the task's base rate times the method's prior."""
    match: Match | None = None


@dataclass(frozen=True)
class Halving:
    """Successive halving: a short screening of all points, then the better ones at full length."""

    steps: int
    """Steps of the screening runs."""
    keep: float = 0.5
    """Share of the points that goes on, alike for every arm."""

    def survivors(self, points: int) -> int:
        """Return how many of an arm's points go on: keep * points, rounded up, at least one."""
        return max(1, math.ceil(self.keep * points))


@dataclass(frozen=True)
class Tuning:
    """An equal budget for every arm: points x seeds learning rates, and equal extensions."""

    points: int = 6
    per_decade: int = 4
    seeds: tuple[int, ...] = (101, 102)
    extend: int = 2
    """Points that every arm of a task gets more when any arm's best is at its edge."""
    rounds: int = 2
    """At most so many extensions; then the row carries an edge mark."""
    runners_up: int = 0
    """Extra final arms at other learning rates within one standard error of the best, at most."""
    halving: Halving | None = None


@dataclass(frozen=True)
class Costs:
    """The solo, cold-cache run per arm and task behind the time and memory columns."""

    steps: int = 20
    seed: int = 900


@dataclass(frozen=True)
class StudySpec:
    """A study, whole. What `design()` returns is fixed before the first run."""

    name: str
    model: str
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    reference: str
    """Label of the arm that all others are compared with."""
    margin: float
    """Differences smaller than this do not matter (fraction of the metric's range)."""
    metric: str = "score"
    """Key of the records' scores that decides: score | tolerant."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Final seeds."""
    alpha: float = 0.05
    procedure: str = "paired_t"
    """paired_t: about this test set. crossed: about new items of the same kind too."""
    tuning: Tuning | None = field(default_factory=Tuning)
    """None: every arm at its centre; the tables then say that this is not a tuned comparison."""
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Title of a block of rows -> arm labels; an arm may stand in several. Empty: one block."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Overrides of every job: steps, batch_size, targets, dtype, ..."""
    per_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Overrides of one task's jobs."""
    costs: Costs | None = field(default_factory=Costs)
    validation_items: int = 300
    """Items expected, for the plan."""
    test_items: int = 1000
    assumed_sd: float = 0.01
    """Sd of paired differences between seeds that the plan assumes before there are any."""
    question: str = ""
    centres: dict[str, float] = field(default_factory=dict)
    """`task/label` -> centre of the learning rates; filled by `bind`."""
    matched: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> {key: value} found by the solver; filled by `bind`."""
    consumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`task/label` -> the fields that a run of the arm consumes; filled by `bind`."""

    def arm(self, label: str) -> Arm:
        """Return one arm by its label."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        raise UserError(f"study {self.name}: no arm {label!r}; {near(label, self.labels)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the arms in order."""
        return tuple(arm.label for arm in self.arms)

    @property
    def family(self) -> int:
        """Comparisons with the reference: (arms - 1) x tasks."""
        return (len(self.arms) - 1) * len(self.tasks)

    def centre(self, label: str, task: str) -> float:
        """Return the centre of an arm's learning rates in a task.

        Raises:
            UserError: neither the arm nor `bind` gave one.
        """
        value = self.arm(label).lr or self.centres.get(f"{task}/{label}")
        if value is None:
            raise UserError(f"study {self.name}: arm {label!r} has no centre for its learning rates on {task}")
        return float(value)

    def design(self) -> dict[str, Any]:
        """Return everything that a conclusion rests on, as plain data."""
        plain = asdict(self)
        for text in ("question", "assumed_sd", "validation_items", "test_items", "blocks"):
            plain.pop(text)
        return plain
