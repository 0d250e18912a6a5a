"""Comparisons that go on seed by seed until they are decided: a course each, and the family that they are judged in."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from lorax.stats.effects import Array, step_down
from lorax.stats.rule import VERDICTS, Verdicts
from lorax.stats.sequential import NEVER, Look, needed

Key = TypeVar("Key", bound=Hashable)
"""Names a comparison."""


@dataclass
class Course:
    """One comparison, look by look; it ends when it is decided."""

    looks: list[Look] = field(default_factory=list)
    better: float = NEVER
    """The highest log e-value so far."""
    worse: float = NEVER
    sign: int = 0
    """1 better, -1 worse, 0 not decided."""
    open: int = 0
    """Comparisons of the family not yet decided when it was, itself included (Holm's step); 0 before."""

    @property
    def highest(self) -> float:
        """The higher of both."""
        return max(self.better, self.worse)

    @property
    def seeds(self) -> int:
        """Seeds at the last look."""
        return self.looks[-1].seeds if self.looks else 0

    @property
    def decided_after(self) -> int | None:
        """Seeds after which it was decided."""
        return self.seeds if self.sign else None

    def bounds(self, log_level: float) -> tuple[Array, Array]:
        """Return the ends of the interval after each look, (looks,): what no look so far has rejected."""
        ends = np.array([one.bounds(log_level) for one in self.looks]).reshape(-1, 2)
        return np.maximum.accumulate(ends[:, 0]), np.minimum.accumulate(ends[:, 1])


class Family(Generic[Key]):
    """The planned comparisons, judged together after every seed by Holm's procedure on the running maxima.

    Args:
        places: their names.
        alpha: chance that any is ever called different although it is not.
    """

    def __init__(self, places: Iterable[Key], alpha: float):
        self.alpha = alpha
        self.courses: dict[Key, Course] = {place: Course() for place in places}

    @property
    def undecided(self) -> list[Key]:
        """Those that go on."""
        return [place for place, course in self.courses.items() if not course.sign]

    def add(self, looks: Mapping[Key, Look]) -> None:
        """Take in what every undecided comparison shows after one more seed, and decide what can be decided."""
        for place, seen in looks.items():
            course = self.courses[place]
            course.looks.append(seen)
            course.better, course.worse = max(course.better, seen.better), max(course.worse, seen.worse)
        for course in sorted(self.courses.values(), key=lambda course: -course.highest):
            if course.sign:
                continue  # it has passed before: its step is not asked for again
            if course.highest < needed(self.alpha, len(self.undecided)):
                break
            course.open = len(self.undecided)
            course.sign = 1 if course.better >= course.worse else -1


def verdicts(courses: Sequence[Course], alpha: float) -> Verdicts:
    """Return verdicts as a table has them; a decided one with the interval of its step, as `rule.decide` does.

    No equivalence and no non-inferiority: their p-values are 1.

    Args:
        courses: of all planned comparisons, in the order of the table.
        alpha: of the family.
    """
    planned = len(courses)
    p = np.array([min(1.0, 2 * math.exp(-course.highest)) for course in courses])
    steps = np.array([course.open or planned for course in courses])
    ends = np.array([_last(c, needed(alpha, int(step))) for c, step in zip(courses, steps, strict=True)])
    return Verdicts(
        code=np.array([VERDICTS.index(_WORDS[course.sign]) for course in courses]),
        low=ends[:, 0],
        high=ends[:, 1],
        confidence=1 - alpha / steps,
        p=p,
        p_adjusted=step_down(p, lambda rising: rising * (planned - np.arange(planned))),
        p_equivalence=np.ones(planned),
        p_equivalence_adjusted=np.ones(planned),
        p_non_inferior_adjusted=np.ones(planned),
    )


_WORDS = {0: "undecided", 1: "better", -1: "worse"}


def _last(course: Course, log_level: float) -> tuple[float, float]:
    if not course.looks:
        return -math.inf, math.inf
    low, high = course.bounds(log_level)
    return float(low[-1]), float(high[-1])
