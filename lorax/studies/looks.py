"""Seeds until decided: which runs are asked for after each seed, and which arms are decided, from the scores alone.

    first looks   every arm runs the first `FIRST` seeds at its rates; a look after each seed from then on
    windows       under estimand `method` a rate is added while an arm's best on validation is at an end, on all seeds
                  so far, `rounds` times at most; while it is there, nothing is said that rests on the arm's best
    stops         a decided arm runs no further seed; the reference of a task runs on while any of its arms is undecided
    ends          when all are decided, or after the last seed

Nothing is kept between looks: a study that was killed repeats them on its records and comes to the same place. Runs of
a seed that is not complete are waited for; a run is missing whatever its score would be, so that no look depends on
which runs came first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lorax.stats.courses import Course, Family
from lorax.stats.selection import pick
from lorax.stats.sequential import FIRST, Side, look

Place = tuple[str, str]
"""(task, arm)."""


@dataclass(frozen=True)
class Scored:
    """What the looks need of one run."""

    test: float
    items: int
    validation: float = 0.0
    """-inf where the run diverged."""
    loss: float = 0.0
    """On validation."""


Scores = Callable[[Place, int, int], Scored | None]
"""Place, lattice point, seed (by place in the order of seeds) -> its run, or None where it is missing."""


@dataclass
class Series:
    """The final runs of one arm on one task, so far."""

    points: list[int]
    """Rising lattice points of its rates; one where the rate is taken as given."""
    seeded: bool = True
    """False: one run stands for every seed."""
    seeds: int = 0
    """Seeds asked for."""
    best: int | None = None
    """Lattice point of its best rate on validation; None while runs are missing."""
    first: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        """Remember the points that were fixed before the first seed."""
        self.first = frozenset(self.points)

    @property
    def at_edge(self) -> bool:
        """Whether the best of several rates is the lowest or highest."""
        return len(self.points) > 1 and self.best in (self.points[0], self.points[-1])


@dataclass(frozen=True)
class Looked:
    """How far the looks have come."""

    series: dict[Place, Series]
    courses: dict[Place, Course]
    """Of every arm but the reference."""
    missing: tuple[tuple[Place, int, int], ...]
    """Runs to be done before the next look."""


def replay(
    series: Mapping[Place, Series], reference: str, scores: Scores, *, most: int, rounds: int, alpha: float
) -> Looked:
    """Repeat all looks on the runs that are there, up to the first seed with missing runs.

    Args:
        series: every arm on every task, as it starts; changed in place.
        reference: label of the arm that the others are compared with.
        scores: finds a run.
        most: seeds at the last look.
        rounds: by so many rates a window grows at most.
        alpha: chance that any arm is ever called different although it is not.
    """
    family = Family([place for place in series if place[1] != reference], alpha)
    courses = {place: family.courses[place] for place in series if place[1] != reference}
    seen = _Seen(scores)
    for n in range(FIRST, most + 1):
        running = [place for place in courses if not courses[place].sign]
        if not running:
            break
        references = dict.fromkeys((task, reference) for task, _ in running)
        for place in (*references, *running):
            series[place].seeds = n
            _settle(place, series[place], seen, rounds)
        if seen.missing:
            break
        sides = {place: _side(place, series[place], n, seen) for place in (*references, *running)}
        looks = {}
        for place in running:
            (arm, of_arm), (other, of_other) = sides[place], sides[place[0], reference]
            items = min(of_arm, of_other)
            looks[place] = look(arm, other, 1 / items if items else 0.0)
        family.add(looks)
    return Looked(dict(series), courses, tuple(seen.missing))


class _Seen:
    """Runs, looked up once each; those that were asked for and are not there."""

    def __init__(self, scores: Scores):
        self.scores = scores
        self.known: dict[tuple[Place, int], list[Scored]] = {}
        self.missing: dict[tuple[Place, int, int], None] = {}

    def rows(self, place: Place, of: Series) -> list[list[Scored]] | None:
        """Return runs, rates x seeds; None where one is missing."""
        rows, before = [], len(self.missing)
        for k in of.points:
            row = self.known.setdefault((place, k), [])
            for seed in range(len(row), of.seeds if of.seeded else 1):
                run = self.scores(place, k, seed)
                if run is None:
                    self.missing[place, k, seed] = None
                else:
                    row.append(run)
            rows.append(row)
        return rows if len(self.missing) == before else None


def _settle(place: Place, of: Series, seen: _Seen, rounds: int) -> None:
    """Find the best rate on validation and widen the window while it is at an end."""
    while (rows := seen.rows(place, of)) is not None:
        scores, losses = ([[getattr(run, what) for run in row] for row in rows] for what in ("validation", "loss"))
        of.best = of.points[int(pick(scores, losses))]
        if not of.at_edge or len(of.points) - len(of.first) >= rounds:
            return
        low = of.best == of.points[0]
        of.points = [of.points[0] - 1, *of.points] if low else [*of.points, of.points[-1] + 1]
    of.best = None


def _side(place: Place, of: Series, n: int, seen: _Seen) -> tuple[Side, int]:
    """Return what an arm has after n seeds, and the fewest test items of its runs."""
    rows = seen.rows(place, of)
    assert rows is not None  # nothing is missing at a look
    test = np.array([[run.test for run in row] for row in rows])
    fixed = np.array([k in of.first for k in of.points])
    items = min(run.items for row in rows for run in row)
    return Side(test if of.seeded else np.repeat(test, n, axis=1), fixed, of.at_edge), items
