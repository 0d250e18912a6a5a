"""Where "equivalent" is refused although the interval lies inside the margin: it would say nothing of the methods.

    at the floor (ceiling)    both scores lie within the margin of the lowest (highest) possible one: no room to differ
    two groups of runs        the runs of an arm fall apart, by more than the margin: their mean is no typical run
    diverged                  a run of an arm diverged
    few seeds                 fewer than `LEAST_SEEDS` pairs: a second group of runs would too often go unseen

What no rule can see: runs of a kind that did not occur in the seeds at hand (see the calibration).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_SEEDS = 5
"""Of runs that learn less with probability one half, 5 seeds show one kind only in 6 % of studies, 3 seeds in 25 %."""


def at_bound(first: ArrayLike, second: ArrayLike, margin: float, floor: float = 0.0) -> NDArray[np.int_]:
    """Return -1 where both mean scores lie within the margin of the floor, 1 of the ceiling, else 0.

    Args:
        first: (...) mean scores.
        second: (...) mean scores of the other arm.
        margin: of equivalence.
        floor: what is scored without having learnt anything (0, or the share of the majority class).
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    low = np.maximum(a, b) < floor + margin
    high = np.minimum(a, b) > 1 - margin
    return np.where(low, -1, np.where(high, 1, 0))


def in_groups(scores: ArrayLike, margin: float, resolution: float = 0.0) -> NDArray[np.int_]:
    """Return how many runs lie below the widest gap, where the runs fall into two groups; else 0.

    Two groups: the widest gap exceeds the margin, and 1.1 + 18 / (n - 2) times the sd within the groups. Of normal
    samples of 5 to 30 runs at most one in twenty looks so.

    Args:
        scores: (..., n) of one arm.
        margin: of equivalence.
        resolution: one item; the least sd within the groups.
    """
    x = np.sort(np.asarray(scores, dtype=float), axis=-1)
    n = x.shape[-1]
    if n < 4:
        return np.zeros(x.shape[:-1], dtype=int)
    gaps = np.diff(x, axis=-1)
    lower = gaps.argmax(axis=-1) + 1
    below = np.arange(n) < lower[..., None]
    squares = sum(_squares(x, group) for group in (below, ~below))
    within = np.maximum(np.sqrt(squares / (n - 2)), resolution)
    widest = gaps.max(axis=-1)
    return np.where((widest > margin) & (widest > (1.1 + 18 / (n - 2)) * within), lower, 0)


def refused(
    first: ArrayLike, second: ArrayLike, margin: float, resolution: float = 0.0, floor: float = 0.0
) -> NDArray[np.bool_]:
    """Return whether two arms may not be called equivalent, by any rule above that scores alone show.

    Args:
        first: (..., n) scores of an arm, one a seed.
        second: (..., n) scores of the other arm on the same seeds.
        margin: of equivalence.
        resolution: one item.
        floor: as in `at_bound`.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    bound = at_bound(a.mean(axis=-1), b.mean(axis=-1), margin, floor) != 0
    groups = (in_groups(a, margin, resolution) > 0) | (in_groups(b, margin, resolution) > 0)
    return bound | groups | (a.shape[-1] < LEAST_SEEDS)


def _squares(x: NDArray[np.float64], group: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sum of squares around the mean of a group's members, (...)."""
    mean = np.where(group, x, 0).sum(axis=-1, keepdims=True) / group.sum(axis=-1, keepdims=True)
    return np.where(group, (x - mean) ** 2, 0).sum(axis=-1)
