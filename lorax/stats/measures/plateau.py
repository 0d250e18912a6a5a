"""Robustness to the learning rate: over how many decades of rates a method stays within a point of its best.

The mean scores at the rates that were run are joined by straight lines in log10(rate); the width of the set

    { r : mean(r) >= max over q of mean(q) - drop }

is given in decades: 0.5 means that rates over half a decade, a factor of 3.2, do. Its interval: Tukey's simultaneous
intervals of all differences between two rates (studentised range; the residual of rates x seeds is their noise). The
curve between two rates lies between theirs in the same proportion, and so do the bounds, so with that probability

    width { every lower bound of mean(r) - mean(q) >= -drop }  <=  width  <=  width { every upper bound >= -drop }

Two tuning seeds leave it wide. A set that reaches the lowest or highest rate may go on beyond: the width is then "at
least". Rates at which a run diverged are outside, and so is the way to them. The noise is supposed equal at all rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from lorax.stats.effects import Array


@dataclass(frozen=True)
class Plateau:
    """Decades of rates within `drop` of the best."""

    width: float
    low: float
    high: float
    at_edge: bool
    """Whether the set reaches the lowest or highest rate that was run: the true width may be larger."""
    high_at_edge: bool
    """The same of the set that gives `high`."""
    grid: float
    """Decades between the lowest and the highest rate."""


def plateau(
    rates: ArrayLike, scores: ArrayLike, drop: float = 0.01, confidence: float = 0.95, resolution: float = 0.0
) -> Plateau:
    """Return the width of the set of good rates.

    Args:
        rates: (R,) rising.
        scores: (R, S) of the same seeds at every rate; not finite where a run diverged.
        drop: how far below the best still counts, a fraction.
        confidence: of the interval.
        resolution: one item; the least sd of a score.

    Examples:
        >>> found = plateau([1e-4, 1e-3, 1e-2], [[0.5, 0.5], [0.6, 0.6], [0.5, 0.5]], drop=0.05)
        >>> round(found.width, 9), found.at_edge
        (1.0, False)
    """
    x, y = np.log10(np.asarray(rates, dtype=float)), np.asarray(scores, dtype=float)
    grid = float(x[-1] - x[0])
    kept = np.isfinite(y).all(axis=1)
    if not kept.any():
        return Plateau(0.0, 0.0, grid, False, True, grid)
    known = y[kept]
    half = _half_width(known, confidence, resolution)
    means = np.where(kept, np.where(np.isfinite(y), y, 0.0).mean(axis=1), -np.inf)
    differences = means[:, None] - means[kept]
    apart = np.where(np.where(kept)[0] == np.arange(len(x))[:, None], 0.0, half)
    width, at_edge = _width(x, differences, drop)
    low, _ = _width(x, differences - apart, drop)
    high, high_at_edge = _width(x, differences + apart, drop)
    return Plateau(width, low, high, at_edge, high_at_edge, grid)


def _half_width(y: Array, confidence: float, resolution: float) -> float:
    """Return the half width of Tukey's intervals; infinite without a second seed or a second rate."""
    rates, seeds = y.shape
    if rates < 2:
        return 0.0
    if seeds < 2:
        return float("inf")
    df = (rates - 1) * (seeds - 1)
    residual = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    sd = max(float(np.sqrt((residual**2).sum() / df)), resolution)
    return _tukey(confidence, rates, df) * sd / seeds**0.5


@lru_cache(maxsize=64)
def _tukey(confidence: float, rates: int, df: int) -> float:
    """Return the quantile of the studentised range; scipy integrates for tens of milliseconds."""
    return float(sps.studentized_range.ppf(confidence, rates, df))


def _width(x: Array, differences: Array, drop: float) -> tuple[float, bool]:
    """Return the width where all differences, straight between two rates, are at least -drop; whether it meets an end.

    Args:
        x: (R,) log10 of the rates.
        differences: (R, Q) of each rate to each other one; -inf outside.
        drop: a fraction.
    """
    margin = differences + drop
    good: NDArray[np.bool_] = np.asarray((margin >= -1e-12).all(axis=1))
    total = 0.0
    for left in range(len(x) - 1):
        a, b = margin[left], margin[left + 1]
        if np.isneginf(a).any() or np.isneginf(b).any():
            continue
        start, end = 0.0, 1.0
        for here, there in zip(a, b, strict=True):
            if here < 0 and there < 0:
                start, end = 1.0, 0.0
            elif here < 0 <= there and np.isfinite(there):
                start = max(start, here / (here - there))
            elif there < 0 <= here and np.isfinite(here):
                end = min(end, here / (here - there))
        total += max(end - start, 0.0) * (x[left + 1] - x[left])
    return float(total), bool(good[0] or good[-1])
