"""How sure the choice of learning rates is, and what a fixed learning rate would have concluded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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

    With two or three seeds the seeds alone say little, so the noise of a finite validation split
    (score s over n items: s (1 - s) / n) is added to each resampled mean. Description only.

    Args:
        trials: all full-length tuning runs of one arm on one task.
        n_items: validation items.
        draws: resamples.
        seed: of the resampling.
    """
    trials = list(trials)
    rates, scores, losses = table(trials)
    generator = np.random.default_rng(seed)
    finite = np.where(np.isfinite(scores), scores, 0.0)  # a diverged run: nothing learnt
    picked = generator.integers(scores.shape[1], size=(draws, scores.shape[1]))
    means = finite[:, picked].mean(axis=2)
    rate01 = np.clip(finite, 0, 1)
    noise = np.sqrt((rate01 * (1 - rate01)).mean(axis=1) / max(n_items, 1) / scores.shape[1])
    means = means + noise[:, None] * generator.standard_normal(means.shape)
    winners = means.argmax(axis=0)
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
class Fixed:
    """What a comparison at one fixed learning rate would have shown on one task (validation scores)."""

    task: str
    lr: float
    scores: dict[str, float]
    """Arm -> mean score over tuning seeds; -inf where a run diverged. Only arms tried there."""
    winner: str
    gap: float
    """Winner's score minus the reference's; nan where the reference was not tried."""


def winner_flips(trials: Iterable[Trial], reference: str) -> list[Fixed]:
    """Return, for every task and rate that at least two arms were tried at, who wins there."""
    cells: dict[tuple[str, float], dict[str, list[float]]] = {}
    for trial in trials:
        cells.setdefault((trial.task, trial.lr), {}).setdefault(trial.arm, []).append(trial.score)
    out = []
    for (task, lr), arms in sorted(cells.items()):
        if len(arms) < 2:
            continue
        means = {arm: float(np.mean(scores)) for arm, scores in arms.items()}
        winner = max(means, key=lambda arm: means[arm])
        gap = means[winner] - means[reference] if reference in means else math.nan
        out.append(Fixed(task, lr, means, winner, gap))
    return out


def table(trials: Sequence[Trial]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Return one arm's rates in order, scores (rate, seed) and losses on one task; -inf, inf if diverged."""
    rates = sorted({trial.lr for trial in trials})
    seeds = sorted({trial.seed for trial in trials})
    scores = np.full((len(rates), len(seeds)), -np.inf)
    losses = -scores
    for trial in trials:
        at = rates.index(trial.lr), seeds.index(trial.seed)
        scores[at], losses[at] = trial.score, trial.loss
    return rates, scores, losses
