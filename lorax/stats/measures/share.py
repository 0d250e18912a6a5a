"""Recovered share: how much of the way from the frozen base to full fine-tuning an arm goes.

    share = (arm - base) / (full - base)

A ratio of two means: where the lower one may be zero, no finite interval can hold its level (Gleser and Hwang 1987).
Fieller's set (1954) holds it: all rho for which the paired t test does not reject "arm - base = rho (full - base)",

    (x - rho z)^2 <= t^2 (v_xx - 2 rho v_xz + rho^2 v_zz),   df = seeds - 1

with means x, z of the per-seed differences and the (co)variances v of these means. It is an interval, or everything
outside of one, or every number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as sps


@dataclass(frozen=True)
class Share:
    """A recovered share with Fieller's set."""

    value: float
    low: float
    high: float
    """Ends of the interval; where `outside`, of the gap that is excluded. Infinite where nothing is excluded."""
    outside: bool = False
    """The set is everything up to `low` and from `high` on: full and base are not shown to differ."""

    @property
    def bounded(self) -> bool:
        """Whether the set is an interval."""
        return not self.outside and math.isfinite(self.low)

    def holds(self, share: float) -> bool:
        """Return whether a share belongs to the set."""
        if self.outside:
            return share <= self.low or share >= self.high
        return self.low <= share <= self.high


def recovered(
    arm: ArrayLike, full: ArrayLike, base: ArrayLike, confidence: float = 0.95, resolution: float = 0.0
) -> Share:
    """Return the recovered share of paired scores.

    Args:
        arm: (n,) scores, one a seed.
        full: (n,) scores on the same seeds.
        base: (n,) scores, or the one of a frozen base.
        confidence: of the set.
        resolution: one item; the least sd of each of the two differences.

    Examples:
        >>> round(recovered([0.5, 0.52, 0.51], [0.6, 0.6, 0.61], 0.2).value, 3)
        0.769
    """
    x = np.asarray(arm, dtype=float) - np.asarray(base, dtype=float)
    z = np.asarray(full, dtype=float) - np.asarray(base, dtype=float)
    n = len(x)
    mean_x, mean_z = float(x.mean()), float(z.mean())
    value = mean_x / mean_z if mean_z else math.nan
    if n < 2:
        return Share(value, -math.inf, math.inf)
    v = np.cov(x, z) / n
    least = resolution**2 / n
    v_xx, v_zz, v_xz = max(float(v[0, 0]), least), max(float(v[1, 1]), least), float(v[0, 1])
    t2 = float(sps.t.ppf((1 + confidence) / 2, n - 1)) ** 2
    a, b, c = mean_z**2 - t2 * v_zz, mean_x * mean_z - t2 * v_xz, mean_x**2 - t2 * v_xx
    root = b * b - a * c
    if a == 0 or root < 0:
        return Share(value, -math.inf, math.inf)
    low, high = sorted(((b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a))
    return Share(value, low, high, outside=a < 0)
