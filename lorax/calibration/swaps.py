"""Calibration on real records: arm labels swapped within seeds, and arms compared with themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lorax.stats import effects
from lorax.stats.result import Final
from lorax.stats.rule import VERDICTS, decide

_NORMAL = 50
"""Data sets with normal seeds behind `Swapped.usual`."""


@dataclass(frozen=True)
class Swapped:
    """How often verdicts find a difference where there is none."""

    study: str
    arms: int
    seeds: int
    tables: int
    false_tables: float
    """Share of label-swapped tables with any better or worse."""
    usual: float
    """The largest such share among data sets of this shape and spread with normal seeds. One small data set
    has few distinct swaps, so its share varies around the 5 % that hold on average."""
    splits: int
    false_splits: float
    """Share of splits of an arm's seeds into halves that differ at 5 %, uncorrected."""


def matrix(finals: Sequence[Final]) -> tuple[np.ndarray, int]:
    """Return scores (tasks, arms, seeds) of the arms that have every seed on every task, and items.

    Scores are taken from the per-item records where they were kept.
    """
    tasks = sorted({f.task for f in finals})
    seeds = sorted({f.seed for f in finals if f.seed is not None})
    cells = {(f.task, f.arm, f.seed): float(np.mean(list(f.items.values()))) if f.items else f.score for f in finals}
    arms = [
        arm
        for arm in dict.fromkeys(f.arm for f in finals)
        if all((task, arm, seed) in cells for task in tasks for seed in seeds)
    ]
    scores = np.array([[[cells[task, arm, seed] for seed in seeds] for arm in arms] for task in tasks])
    return scores, min(f.n_items for f in finals)


def swap(study: str, finals: Sequence[Final], margin: float, tables: int = 4000, seed: int = 0) -> Swapped:
    """Permute the arms' labels within every seed, so that no arm differs from another.

    Each arm's mean is subtracted first; the noise between seeds is left. (With the means, arms that
    differ would give data with several peaks, which the seeds of one arm do not have.)

    Args:
        study: name, for the report.
        finals: its final runs.
        margin: of the study.
        tables: permutations.
        seed: of the permutations.
    """
    scores, n_items = matrix(finals)
    generator = np.random.default_rng(seed)
    halves = _halves(scores, 1 / n_items)
    sd = float(np.sqrt(scores.var(axis=-1, ddof=1).mean()))
    normal_scores = [generator.normal(0, max(sd, 1 / n_items), scores.shape) for _ in range(_NORMAL)]
    normal = [_differ(data, 1 / n_items, margin, 400, generator) for data in normal_scores]
    return Swapped(
        study=study,
        arms=scores.shape[1],
        seeds=scores.shape[2],
        tables=tables,
        false_tables=_differ(scores, 1 / n_items, margin, tables, generator),
        usual=max(normal),
        splits=len(halves),
        false_splits=float(np.mean(halves < 0.05)),
    )


def _differ(scores: np.ndarray, resolution: float, margin: float, tables: int, generator: np.random.Generator) -> float:
    """Share of label permutations of one data set in which any arm is called better or worse."""
    tasks, arms, seeds = scores.shape
    noise = scores - scores.mean(axis=-1, keepdims=True)
    shape = (tables, *scores.shape)
    order = generator.random((tables, 1, arms, seeds)).argsort(axis=2)
    mixed = np.take_along_axis(np.broadcast_to(noise, shape), np.broadcast_to(order, shape), axis=2)
    d = (mixed[:, :, 1:] - mixed[:, :, :1]).reshape(tables, tasks * (arms - 1), seeds)
    code = decide(effects.paired_t(d, resolution), margin).code
    return float(((code == VERDICTS.index("better")) | (code == VERDICTS.index("worse"))).any(axis=-1).mean())


def _halves(scores: np.ndarray, resolution: float) -> np.ndarray:
    """Return the p-values of each arm's seeds split into two halves, over all splits."""
    seeds = scores.shape[-1]
    half = seeds // 2
    p_values = []
    for first in combinations(range(seeds), half):
        second = [at for at in range(seeds) if at not in first][:half]
        d = scores[..., list(first)] - scores[..., second]
        p_values.append(effects.paired_t(d, resolution).p_zero().ravel())
    return np.concatenate(p_values) if p_values and half > 1 else np.ones(1)
