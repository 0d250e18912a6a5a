"""Learning rates: how firm the choice is, each arm's curve, and who leads where all arms use one rate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lorax.stats.selection import Trial, pick


@dataclass(frozen=True)
class Selection:
    """One arm on one task: which rates resampled tuning runs would have chosen."""

    arm: str
    task: str
    frequency: dict[float, float]
    """lr -> share of resamples that choose it."""
    chosen: float
    """The rate that the tuning runs themselves choose."""
    regret: float
    """Mean loss in score (fraction) against the rate that is best on all tuning runs."""

    @property
    def stability(self) -> float:
        """Share of resamples that choose what was chosen."""
        return self.frequency.get(self.chosen, 0.0)


def selection(trials: Iterable[Trial], n_items: int, draws: int = 2000, seed: int = 0) -> Selection:
    """Resample the tuning runs of one arm on one task: seeds with replacement, items binomially.

    Two or three seeds alone say little, so the noise of a finite validation split (score s over n items:
    variance s (1 - s) / n) is added to each resampled mean. Description only.

    Args:
        trials: all full-length tuning runs of one arm on one task.
        n_items: validation items.
        draws: resamples.
        seed: of the resampling.
    """
    trials = list(trials)
    rates, scores, losses = by_rate_and_seed(trials)
    generator = np.random.default_rng(seed)
    finite = np.where(np.isfinite(scores), scores, 0.0)  # a diverged run: nothing learnt
    picked = generator.integers(scores.shape[1], size=(draws, scores.shape[1]))
    means = finite[:, picked].mean(axis=2)
    rate01 = np.clip(finite, 0, 1)
    noise = np.sqrt((rate01 * (1 - rate01)).mean(axis=1) / max(n_items, 1) / scores.shape[1])
    means = means + noise[:, None] * generator.standard_normal(means.shape)
    lost = losses[:, picked].mean(axis=2)  # breaks ties as `pick` does: without it, all at 0 % would name the lowest
    winners = np.where(means == means.max(axis=0), lost, np.inf).argmin(axis=0)
    truth = finite.mean(axis=1)
    frequency = {lr: float(np.mean(winners == at)) for at, lr in enumerate(rates)}
    return Selection(
        arm=trials[0].arm,
        task=trials[0].task,
        frequency=frequency,
        chosen=rates[int(pick(scores, losses))],
        regret=float(np.mean(truth.max() - truth[winners])),
    )


@dataclass(frozen=True)
class Stretch:
    """An interval of learning rates in which one arm has the best mean when all arms use the same rate."""

    task: str
    low: float
    high: float
    winner: str
    runner_up: str
    gap: float
    """Largest lead over the runner-up inside, fraction."""


def curve(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, lowest and highest score over seeds at each learning rate, sorted by rate.

    Where a seed diverged (null score) the mean is null: the other seeds alone would flatter the rate.

    Args:
        frame: runs of one arm on one task, with columns lr and score.
    """
    by_rate = frame.groupby("lr")["score"]
    points = by_rate.agg(["min", "max"]).assign(mean=by_rate.agg(lambda scores: scores.mean(skipna=False)))
    return points.reset_index().sort_values("lr", ignore_index=True)


def means_along(frame: pd.DataFrame, steps: int = 200) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return `steps` learning rates, and each arm's mean score at them.

    Means are joined by straight lines in log(lr); outside the range that an arm was run at they are nan.

    Args:
        frame: tuning runs on one task: columns arm, lr, score.
        steps: number of rates, from the lowest to the highest of the frame at equal ratios.
    """
    rates = np.geomspace(frame["lr"].min(), frame["lr"].max(), steps)
    return rates, {str(arm): _interpolated(curve(runs), rates) for arm, runs in frame.groupby("arm", sort=False)}


def _interpolated(points: pd.DataFrame, rates: np.ndarray) -> np.ndarray:
    points = points.dropna(subset=["mean"])
    if points.empty:
        return np.full(len(rates), np.nan)
    return np.interp(np.log(rates), np.log(points["lr"]), points["mean"], left=np.nan, right=np.nan)


def stretches(frame: pd.DataFrame, steps: int = 200) -> list[Stretch]:
    """Return, per task, the intervals of learning rate on which each arm has the best mean.

    Means come from `means_along`; rates that fewer than two arms cover are left out.

    Args:
        frame: columns arm, task, lr, score; one row per tuning run.
        steps: number of rates looked at.
    """
    result: list[Stretch] = []
    for task, of_task in frame.groupby("task", sort=False):
        result += _stretches(str(task), *means_along(of_task, steps))
    return result


def _stretches(task: str, rates: np.ndarray, means: Mapping[str, np.ndarray]) -> list[Stretch]:
    arms, values = list(means), np.array(list(means.values()))
    known = np.isfinite(values)
    usable = known.sum(axis=0) >= 2
    ranked = np.argsort(-np.where(known, values, -np.inf), axis=0, kind="stable")
    # Borders lie half a step outside, so that neighbouring stretches meet.
    half_step = np.sqrt(rates[1] / rates[0])
    result = []
    for winner, group in itertools.groupby(range(len(rates)), lambda at: int(ranked[0, at]) if usable[at] else None):
        if winner is None:
            continue
        inside = list(group)
        leads = [values[ranked[0, at], at] - values[ranked[1, at], at] for at in inside]
        best = inside[int(np.argmax(leads))]
        result.append(
            Stretch(
                task=task,
                low=max(rates[inside[0]] / half_step, rates[0]),
                high=min(rates[inside[-1]] * half_step, rates[-1]),
                winner=arms[winner],
                runner_up=arms[ranked[1, best]],
                gap=float(max(leads)),
            )
        )
    return result


def by_rate_and_seed(trials: Sequence[Trial]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Return one arm's rates in order, and scores and losses (rate, seed); -inf and inf where a run diverged."""
    rates = sorted({trial.lr for trial in trials})
    seeds = sorted({trial.seed for trial in trials})
    scores = np.full((len(rates), len(seeds)), -np.inf)
    losses = -scores
    for trial in trials:
        at = rates.index(trial.lr), seeds.index(trial.seed)
        scores[at], losses[at] = trial.score, trial.loss
    return rates, scores, losses
