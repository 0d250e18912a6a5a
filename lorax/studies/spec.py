"""What a study is made of: arms, tuning, seeds, margin, estimand, blocks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lorax.errors import UserError, near

_NOT_DESIGN = ("question", "assumed_sd", "validation_items", "test_items", "blocks")
"""Keys that may change after the first run: no conclusion rests on them."""
WHEN_ABSENT: dict[str, Any] = {"estimand": "rate", "claim": "difference", "sensitivity": {}}
"""Key added later -> the value that stored designs without it stand for. With this value it is not stored."""


@dataclass(frozen=True)
class Match:
    """Which field of an arm is chosen so that it has as many trainable parameters as another arm."""

    to: str
    """Label of the other arm."""
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
    """Settings of this arm only: rank, alpha, scaling, `init.pattern`, ..."""
    trained: bool = True
    """False for a frozen base: no tuning, no cost run, one final run that is paired with every seed."""
    lr: float | None = None
    """Centre of its learning rates in every task; None: the task's base rate times the method's prior."""
    match: Match | None = None


@dataclass(frozen=True)
class Halving:
    """Successive halving: short runs of all points, then full-length runs of the better ones."""

    steps: int
    """Steps of the screening runs."""
    keep: float = 0.5
    """Share of the points that is run at full length, the same for every arm."""

    def survivors(self, points: int) -> int:
        """Return how many of an arm's points are run at full length: keep * points, rounded up, at least one."""
        return max(1, math.ceil(self.keep * points))


@dataclass(frozen=True)
class Tuning:
    """An equal budget for every arm: points x seeds learning rates, and equal extensions."""

    points: int = 6
    per_decade: int = 4
    seeds: tuple[int, ...] = (101, 102)
    extend: int = 2
    """Further points of every arm of a task when any arm's best is at its edge."""
    rounds: int = 2
    """At most so many extensions; a best at the edge after them is marked in the table."""
    runners_up: int = 0
    """At most so many other learning rates within one standard error of the best get final runs too (`rate`)."""
    halving: Halving | None = None


@dataclass(frozen=True)
class Costs:
    """The run of every arm on every task, alone and with a cold cache, that measures time and memory."""

    steps: int = 20
    seed: int = 900


@dataclass(frozen=True)
class UntilDecided:
    """Final seeds are added one by one, from three, until every arm is decided (see `stats.sequential`)."""

    max: int = 30
    """Seeds at the last look; what is not decided by then stays so."""


@dataclass(frozen=True)
class StudySpec:
    """A whole study. What `design()` returns is fixed before the first run."""

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
    seeds: tuple[int, ...] = tuple(range(8))
    """Final seeds; under estimand `rate` six by default. Those that may be run, where they are until decided."""
    alpha: float = 0.05
    procedure: str = "paired_t"
    """paired_t: about this test set. crossed: about new items of the same kind too."""
    estimand: str = "method"
    """What a verdict is about. method: each arm at its best rate, of a window that every seed runs. rate: the
    difference at the selected rates (see `stats.estimands`); the default where nothing is tuned."""
    claim: str = "difference"
    """What the study sets out to show. difference: better, worse or equivalent within the margin. non_inferior: not
    worse by the margin, one-sided; nothing is then called equivalent (see `stats.rule`)."""
    tuning: Tuning | None = field(default_factory=Tuning)
    """None: every arm at its centre; tables then note that this is not a tuned comparison."""
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Title of a block of rows -> arm labels; an arm may stand in several. Empty: one block."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Overrides of every job: steps, batch_size, targets, dtype, ..."""
    per_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Overrides of one task's jobs."""
    sensitivity: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Setting -> values around the design, one at a time: `rank: [4, 16]`, `steps: [50, 200]`, `targets: [...]`. Every
    arm that does not set it itself runs at its selected rate with each; a description, no verdict rests on it."""
    costs: Costs | None = field(default_factory=Costs)
    validation_items: int = 300
    """Items on validation, for the plan only."""
    test_items: int = 1000
    """Items on test, for the plan only."""
    assumed_sd: float = 0.01
    """Sd of the differences between paired seeds that the plan assumes."""
    question: str = ""
    centres: dict[str, float] = field(default_factory=dict)
    """`task/label` -> centre of the learning rates; filled by `bind`."""
    matched: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> {key: value} with which the arm has as many parameters as another; filled by `bind`."""
    consumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`task/label` -> the fields that a run of the arm consumes; filled by `bind`."""
    until_decided: UntilDecided | None = None
    """From `seeds: {until_decided: {max: 30}}`; None: the seeds are fixed."""

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

    def plain(self) -> dict[str, Any]:
        """Return the study as plain data, as it is stored."""
        plain = {key: value for key, value in asdict(self).items() if WHEN_ABSENT.get(key, ...) != value}
        decided = plain.pop("until_decided")
        return plain if decided is None else plain | {"seeds": {"until_decided": decided}}

    def design(self) -> dict[str, Any]:
        """Return everything that a conclusion rests on, as plain data."""
        return {key: value for key, value in self.plain().items() if key not in _NOT_DESIGN}
