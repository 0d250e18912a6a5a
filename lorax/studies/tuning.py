"""Learning rates on a fixed lattice: grid, choice on validation, edges and equal extensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorax.records import RunRecord
from lorax.stats.selection import Trial, best_first
from lorax.studies.job_index import JobIndex
from lorax.studies.jobs import Job, make_job
from lorax.studies.spec import StudySpec, Tuning


def rate(k: int, per_decade: int = 4) -> float:
    """Return lattice point k, 10^(k / per_decade), to four digits.

    Examples:
        >>> [rate(k) for k in (-12, -11, -10)]
        [0.001, 0.001778, 0.003162]
    """
    return float(f"{10 ** (k / per_decade):.4g}")


def grid(centre: float, points: int, per_decade: int = 4) -> list[int]:
    """Return `points` consecutive lattice points with `centre` in their middle (half a step at most off).

    Examples:
        >>> [rate(k) for k in grid(1e-3, 6)]
        [0.0001778, 0.0003162, 0.0005623, 0.001, 0.001778, 0.003162]
    """
    start = math.ceil(round(per_decade * math.log10(centre) - points / 2, 6))
    return list(range(start, start + points))


@dataclass(frozen=True)
class Choice:
    """The learning rate of one arm on one task."""

    arm: str
    task: str
    lr: float | None
    """None: the arm does not train, or the study does not tune and the default rate of the method applies."""
    edge: str = ""
    """`low` or `high` where the best rate is at an end of the grid after the last extension."""
    points: int = 0
    """Lattice points that were tuned at full length."""
    trials: int = 0
    """Runs at these points: points x seeds."""
    score: float = float("nan")
    """Mean validation score over the tuning seeds at lr."""
    runners_up: tuple[float, ...] = ()
    """Other learning rates within one standard error of it, best first."""
    window: tuple[float, ...] = ()
    """Rates that every final seed ran (estimand `method`); `lr` and `edge` are then of these."""
    pilot: float | None = None
    """The rate that tuning chose, in the middle of the first window."""


@dataclass(frozen=True)
class Search:
    """How far the tuning of one task has come."""

    points: dict[str, list[int]]
    """Arm -> its lattice points so far; after a screening those that are run at full length."""
    missing: list[Job]
    stage: str
    """screen | tune | extend: what the missing jobs are for."""
    trials: dict[str, list[Trial]]
    """Arm -> runs at these points so far: short ones while `stage` is still a screening."""
    tried: dict[str, list[int]] | None = None
    """Arm -> lattice points of a complete screening; None: there was none, or runs of it are missing."""
    screened: dict[str, list[Trial]] = field(default_factory=dict)
    """Arm -> the short runs of all these points."""

    def edge(self, arm: str, best: int) -> str:
        """Return `low` or `high` where a lattice point is at an end of all points that were tried, else ""."""
        ks = (self.tried or self.points)[arm]
        return "low" if best == ks[0] else "high" if best == ks[-1] else ""

    def full_length(self) -> list[Trial]:
        """Return all runs at `points`."""
        return [trial for some in self.trials.values() for trial in some]

    def short(self) -> list[Trial]:
        """Return all runs of a complete screening."""
        return [trial for some in self.screened.values() for trial in some]

    def all_trials(self) -> list[Trial]:
        """Return every run that the tuning has made use of."""
        return self.full_length() + self.short()


def search(spec: StudySpec, index: JobIndex, task: str) -> Search:
    """Repeat the tuning of one task on its records, up to the first round with missing runs."""
    tuning = spec.tuning
    arms = [arm.label for arm in spec.arms if arm.trained]
    if tuning is None:
        return Search({arm: [] for arm in arms}, [], "tune", {arm: [] for arm in arms})
    points = {arm: grid(spec.centre(arm, task), tuning.points, tuning.per_decade) for arm in arms}
    first = "screen" if tuning.halving else "tune"
    trials: dict[str, list[Trial]] = {}
    for extension in range(tuning.rounds + 1):
        trials, missing = _trials(spec, tuning, index, task, points, first, trials)
        if missing or extension == tuning.rounds:
            break
        best = {arm: ranked(points[arm], trials[arm], tuning.per_decade)[0] for arm in arms}
        if not any(best[arm] in (points[arm][0], points[arm][-1]) for arm in arms):
            break
        points = {arm: _extended(points[arm], best[arm], tuning.extend) for arm in arms}
    longer = any(len(ks) > tuning.points for ks in points.values())
    if missing or not tuning.halving:
        return Search(points, missing, "extend" if missing and longer else first, trials)
    keep = tuning.halving.survivors(tuning.points)
    kept = {arm: sorted(ranked(points[arm], trials[arm], tuning.per_decade)[:keep]) for arm in arms}
    tuned, missing = _trials(spec, tuning, index, task, kept, "tune", {})
    return Search(kept, missing, "tune", tuned, points, trials)


def choose(spec: StudySpec, tuned: Search, task: str) -> dict[str, Choice]:
    """Choose each arm's learning rate: best mean validation score, ties by loss, then the lower rate.

    Args:
        spec: the study.
        tuned: a search of this task without missing runs.
        task: its name.

    Returns:
        Arm -> its choice, for the arms that do not train too.
    """
    tuning = spec.tuning
    choices = {arm.label: Choice(arm.label, task, None if tuning else arm.lr) for arm in spec.arms}
    if tuning is None:
        return choices
    for arm, trials in tuned.trials.items():
        if not trials:
            continue
        ks = tuned.points[arm]
        order = ranked(ks, trials, tuning.per_decade)
        best = order[0]
        scores = {k: [trial.score for trial in trials if trial.lr == rate(k, tuning.per_decade)] for k in ks}
        mean = float(np.mean(scores[best]))
        spread = np.std(scores[best], ddof=1) if len(scores[best]) > 1 and np.isfinite(mean) else 0.0
        within = mean - spread / math.sqrt(max(len(scores[best]), 1))
        near = [rate(k, tuning.per_decade) for k in order[1:] if np.mean(scores[k]) >= within]
        lr, edge = rate(best, tuning.per_decade), tuned.edge(arm, best)
        choices[arm] = Choice(arm, task, lr, edge, len(ks), len(trials), mean, tuple(near))
    return choices


def as_trial(record: RunRecord, arm: str, task: str, lr: float, seed: int, metric: str) -> Trial:
    """Read a tuning record; a diverged run scores below everything."""
    score, loss = record.score("validation", metric), record.score("validation", "loss")
    if record.status == "diverged" or score is None:
        return Trial(arm, task, lr, seed, -math.inf, math.inf, record)
    sign = -1.0 if record.task.get("direction") == "min" else 1.0
    return Trial(arm, task, lr, seed, sign * score, math.inf if loss is None else loss, record)


def ranked(ks: Sequence[int], trials: Sequence[Trial], per_decade: int) -> list[int]:
    """Return lattice points from best to worst by one arm's trials; each has the same seeds."""
    cells = [[trial for trial in trials if trial.lr == rate(k, per_decade)] for k in ks]
    order = best_first([[t.score for t in cell] for cell in cells], [[t.loss for t in cell] for cell in cells])
    return [ks[at] for at in order]


def _trials(
    spec: StudySpec,
    tuning: Tuning,
    index: JobIndex,
    task: str,
    points: Mapping[str, Sequence[int]],
    stage: str,
    known: Mapping[str, Sequence[Trial]],
) -> tuple[dict[str, list[Trial]], list[Job]]:
    """Return arm -> the runs at its lattice points, and the jobs without a record.

    Runs in `known` are not looked up again.
    """
    earlier = {(trial.arm, trial.lr, trial.seed): trial for some in known.values() for trial in some}
    done: dict[str, list[Trial]] = {arm: [] for arm in points}
    missing = []
    for arm, ks in points.items():
        for lr in (rate(k, tuning.per_decade) for k in ks):
            for seed in tuning.seeds:
                trial = earlier.get((arm, lr, seed))
                if trial is None:
                    job = make_job(spec, arm, task, stage, lr, seed)
                    record = index.find(job)
                    if record is None:
                        missing.append(job)
                        continue
                    trial = as_trial(record, arm, task, lr, seed, spec.metric)
                done[arm].append(trial)
    return done, missing


def _extended(ks: Sequence[int], best: int, points: int) -> list[int]:
    """Add points at the end that the best one is nearer to; at the upper end if it is in the middle."""
    if best - ks[0] < ks[-1] - best:
        return list(range(ks[0] - points, ks[-1] + 1))
    return list(range(ks[0], ks[-1] + points + 1))
