"""Learning rates on a fixed lattice: grid, choice on validation, edges and equal extensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lorax.records import RunRecord
from lorax.studies.job_index import Book
from lorax.studies.jobs import Job, make_job
from lorax.studies.spec import StudySpec


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
    """None: the arm does not train, or the study does not tune and leaves it to base rate times prior."""
    edge: str = ""
    """`low` or `high` where the best stands at an end of the grid after the last extension."""
    points: int = 0
    trials: int = 0
    """Runs spent on it: points x seeds."""
    score: float = float("nan")
    """Mean validation score over the tuning seeds at lr."""
    runners_up: tuple[float, ...] = ()
    """Other learning rates within one standard error of it, best first."""


@dataclass(frozen=True)
class Trial:
    """One tuning run."""

    arm: str
    task: str
    lr: float
    seed: int
    score: float
    """On validation; -inf where the run diverged, the worst there is."""
    loss: float
    """On validation; inf where the run diverged or none was measured."""
    record: RunRecord


@dataclass
class Search:
    """How far the tuning of one task has come."""

    rates: dict[str, list[int]]
    """Arm -> lattice points so far."""
    missing: list[Job]
    stage: str
    """screen | tune | extend: what the missing jobs are for."""
    trials: dict[str, list[Trial]]
    """Arm -> full-length tuning runs so far."""
    tried: dict[str, list[int]] | None = None
    """Arm -> lattice points that were screened, of which `rates` are the survivors; None: nothing was screened."""

    screened: dict[str, list[Trial]] | None = None
    """Arm -> the short runs of all these points."""

    def edge(self, arm: str, best: int) -> str:
        """Return `low` or `high` where a lattice point stands at an end of all that was tried, else nothing."""
        ks = (self.tried or self.rates)[arm]
        return "low" if best == ks[0] else "high" if best == ks[-1] else ""


def search(spec: StudySpec, book: Book, task: str) -> Search:
    """Replay the tuning of one task from its records, up to the first round with missing runs."""
    tuning = spec.tuning
    arms = [arm.label for arm in spec.arms if arm.trained]
    if tuning is None:
        return Search({arm: [] for arm in arms}, [], "tune", {arm: [] for arm in arms})
    rates = {arm: grid(spec.centre(arm, task), tuning.points, tuning.per_decade) for arm in arms}
    first = "screen" if tuning.halving else "tune"
    for extension in range(tuning.rounds + 1):
        trials, missing = _trials(spec, book, task, rates, first)
        if missing or extension == tuning.rounds:
            break
        best = {arm: ranked(rates[arm], trials[arm], tuning.per_decade)[0] for arm in arms}
        if not any(best[arm] in (rates[arm][0], rates[arm][-1]) for arm in arms):
            break
        rates = {arm: _extended(rates[arm], best[arm], tuning.extend) for arm in arms}
    longer = any(len(ks) > tuning.points for ks in rates.values())
    if missing or not tuning.halving:
        return Search(rates, missing, "extend" if missing and longer else first, trials)
    keep = tuning.halving.survivors(tuning.points)
    kept = {arm: _survivors(rates[arm], trials[arm], keep, tuning.per_decade) for arm in arms}
    tuned, missing = _trials(spec, book, task, kept, "tune")
    return Search(kept, missing, "tune", tuned, rates, trials)


def choose(spec: StudySpec, found: Search, task: str) -> dict[str, Choice]:
    """Choose each arm's learning rate: best mean validation score, ties by loss, then the lower rate."""
    tuning = spec.tuning
    out = {arm.label: Choice(arm.label, task, None if tuning else arm.lr) for arm in spec.arms}
    if tuning is None:
        return out
    for arm, trials in found.trials.items():
        if not trials:
            continue
        ks = found.rates[arm]
        order = ranked(ks, trials, tuning.per_decade)
        best = order[0]
        scores = {k: _scores(k, trials, tuning.per_decade) for k in ks}
        mean = float(np.mean(scores[best]))
        spread = np.std(scores[best], ddof=1) if len(scores[best]) > 1 and np.isfinite(mean) else 0.0
        within = mean - spread / math.sqrt(max(len(scores[best]), 1))
        near = [rate(k, tuning.per_decade) for k in order[1:] if np.mean(scores[k]) >= within]
        lr, edge = rate(best, tuning.per_decade), found.edge(arm, best)
        out[arm] = Choice(arm, task, lr, edge, len(ks), len(trials), mean, tuple(near))
    return out


def as_trial(record: RunRecord, arm: str, task: str, lr: float, seed: int, metric: str) -> Trial:
    """Read a tuning record; a diverged run scores below everything."""
    score, loss = record.score("validation", metric), record.score("validation", "loss")
    if record.status == "diverged" or score is None:
        return Trial(arm, task, lr, seed, -math.inf, math.inf, record)
    sign = -1.0 if record.task.get("direction") == "min" else 1.0
    return Trial(arm, task, lr, seed, sign * score, math.inf if loss is None else loss, record)


def _trials(
    spec: StudySpec, book: Book, task: str, rates: dict[str, list[int]], stage: str
) -> tuple[dict[str, list[Trial]], list[Job]]:
    tuning = spec.tuning
    assert tuning is not None
    done: dict[str, list[Trial]] = {arm: [] for arm in rates}
    missing = []
    for arm, ks in rates.items():
        for k in ks:
            lr = rate(k, tuning.per_decade)
            for seed in tuning.seeds:
                record = book.find(arm, task, stage, lr, seed)
                if record is None:
                    missing.append(make_job(spec, arm, task, stage, lr, seed))
                else:
                    done[arm].append(as_trial(record, arm, task, lr, seed, spec.metric))
    return done, missing


def pick(scores: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Return the index of the best rate: highest mean score, ties by lowest mean loss, then the lowest rate.

    Args:
        scores: (..., rates, seeds) validation scores; -inf where a run diverged.
        losses: (..., rates, seeds) validation losses.
    """
    return _order(scores, losses)[..., 0]


def _order(scores: ArrayLike, losses: ArrayLike) -> np.ndarray:
    # Equal means are equal: 0.225 + 0.225 and 0.215 + 0.235 differ in the last bit, and the loss decides ties.
    score, loss = np.round(np.mean(scores, axis=-1), 12), np.mean(losses, axis=-1)
    return np.lexsort((np.broadcast_to(np.arange(score.shape[-1]), score.shape), loss, -score), axis=-1)


def ranked(ks: Sequence[int], trials: Sequence[Trial], per_decade: int) -> list[int]:
    """Return lattice points from best to worst by one arm's trials; each has the same seeds."""
    cells = {k: [trial for trial in trials if trial.lr == rate(k, per_decade)] for k in ks}
    order = _order([[t.score for t in cells[k]] for k in ks], [[t.loss for t in cells[k]] for k in ks])
    return [ks[at] for at in order]


def _scores(k: int, trials: Sequence[Trial], per_decade: int) -> list[float]:
    return [trial.score for trial in trials if trial.lr == rate(k, per_decade)]


def _survivors(ks: Sequence[int], trials: Sequence[Trial], keep: int, per_decade: int) -> list[int]:
    return sorted(ranked(ks, trials, per_decade)[:keep])


def _extended(ks: Sequence[int], best: int, points: int) -> list[int]:
    """Grow towards the end that the best is nearer to (upwards where it is in the middle)."""
    if best - ks[0] < ks[-1] - best:
        return list(range(ks[0] - points, ks[-1] + 1))
    return list(range(ks[0], ks[-1] + points + 1))
