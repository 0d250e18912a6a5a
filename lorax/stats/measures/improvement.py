"""Probability of improvement: how often one run of an arm beats one run of the reference.

    P(X > Y) + P(X = Y) / 2,   X a run of the arm, Y a run of the reference, each with a seed of its own

estimated over all pairs of runs (Mann and Whitney's statistic), as in Agarwal et al. 2021 (rliable). Its interval is
not their bootstrap, which gives [1, 1] where five runs beat five: it is Newcombe's score interval (2006, method 5),
which solves |P - estimate| = z sqrt(V(P)) with

    V(P) = P (1 - P) (1 + k ((1 - P) / (2 - P) + P / (1 + P))) / (m n),   k = (m + n) / 2 - 1

It is meant for independent runs. Runs that share a seed share data order, so that differences vary less; the interval
is then too wide rather than too narrow. It says nothing of how large the difference is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as sps

from lorax.stats.effects import wilson

Bounded = tuple[float, float, float]
"""Estimate, low, high."""


def improvement(
    arm: ArrayLike, reference: ArrayLike, confidence: float = 0.95, *, certain: tuple[bool, bool] = (False, False)
) -> Bounded:
    """Return the probability that a run of the arm beats a run of the reference, and its interval.

    Args:
        arm: (m,) scores.
        reference: (n,) scores.
        confidence: of the interval.
        certain: whether the arm, the reference, has no seed: its one score is no draw (a frozen base).

    Examples:
        >>> improvement([0.6, 0.7], [0.5, 0.6])[0]
        0.875
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(reference, dtype=float)
    share = float(((x[:, None] > y) + (x[:, None] == y) / 2).mean())
    if all(certain):
        return share, share, share
    if any(certain):
        return share, *wilson(share, len(y) if certain[0] else len(x), confidence)
    return share, *_newcombe(share, len(x), len(y), confidence)


def _newcombe(share: float, m: int, n: int, confidence: float) -> tuple[float, float]:
    z = float(sps.norm.ppf((1 + confidence) / 2))
    k = (m + n) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + k * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return abs(p - share) - z * math.sqrt(variance)

    inside = min(max(share, 1e-9), 1 - 1e-9)  # at 0 and at 1 the variance is 0: these are roots of no interest
    low = 0.0 if share == 0 else float(optimize.brentq(excess, 0.0, inside))
    high = 1.0 if share == 1 else float(optimize.brentq(excess, inside, 1.0))
    return low, high


def over_tasks(parts: Sequence[Bounded]) -> Bounded:
    """Return the mean over tasks, as rliable takes it, and its interval from those of the tasks.

    Each end lies sqrt(sum of squared distances) / T from the mean (MOVER, Zou and Donner 2008): exact for independent
    normal parts, and it keeps their asymmetry.

    Args:
        parts: one a task.

    Examples:
        >>> [round(x, 3) for x in over_tasks([(0.5, 0.2, 0.8), (0.7, 0.3, 0.8)])]
        [0.6, 0.35, 0.758]
    """
    share, low, high = (np.array(column) for column in zip(*parts, strict=True))
    mean = float(share.mean())
    below, above = (float(np.sqrt(((share - end) ** 2).sum())) / len(parts) for end in (low, high))
    return mean, mean - below, mean + above
