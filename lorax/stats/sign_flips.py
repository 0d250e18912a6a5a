"""The exact p-value of sign flips, beside that of the t: it needs no normal differences, only symmetric ones.

Where arm and reference do not differ, each per-seed difference is as likely to have the other sign. Of the 2^n ways to
give n differences their signs, p is the share whose mean is at least the one seen. All are counted, none is drawn:
every sum is that of two halves, and one half's sums are found in the other's sorted ones, 2^(n/2) look-ups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lorax.stats.effects import Array

MOST = 40
"""Differences that are counted exactly; with more there is no p."""


def attainable(n: int) -> float:
    """Return the smallest two-sided p of n differences: one of 2^n, on either side.

    Examples:
        >>> attainable(5), attainable(8)
        (0.0625, 0.0078125)
    """
    return min(1.0, 2.0 ** (1 - n))


def above(differences: ArrayLike) -> float:
    """Return the one-sided p of "the mean is at most 0": the share of sign flips with a mean as high as this one.

    Args:
        differences: (n,) one a seed.

    Returns:
        nan with no difference, or more than `MOST`.

    Examples:
        >>> above([0.1, 0.2, 0.3])
        0.125
    """
    d = np.asarray(differences, dtype=float)
    n = len(d)
    if not 0 < n <= MOST:
        return float("nan")
    first, second = _sums(d[: n // 2]), np.sort(_sums(d[n // 2 :]))
    least = d.sum() - 1e-9 * max(np.abs(d).sum(), 1e-300)  # sums that are equal but for rounding count as equal
    places = np.searchsorted(second, least - first, side="left")
    return float((len(second) - places).sum()) / 2.0**n


def two_sided(below: ArrayLike, over: ArrayLike, better: bool = True, worse: bool = True) -> float:
    """Return the two-sided p of "no difference" between two arms of several rates each (see `best_rate`).

    Twice the smaller of the one-sided ones, each the largest over the rates that are not picked.

    Args:
        below: (rates of the reference, n) the arm at its pick minus the reference at each rate.
        over: (rates of the arm, n) the arm at each rate minus the reference at its pick.
        better: whether "better" may be said at all; not where the reference's best lies at the edge.
        worse: likewise, with the arm's best.
    """
    low = max(above(row) for row in np.atleast_2d(below)) if better else 1.0
    high = max(above(-row) for row in np.atleast_2d(np.asarray(over, dtype=float))) if worse else 1.0
    return min(1.0, 2 * min(low, high))


def _sums(d: Array) -> Array:
    """Return the sums of all sign flips, (2^n,)."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums
