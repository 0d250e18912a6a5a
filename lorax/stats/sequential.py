"""Verdicts between methods that may be looked at after every seed: an e-process instead of an interval, without picks.

Per seed s let d_s = y_a,s(r) - y_0,s(q) for a rate r of the arm and q of the reference, with mean m and variance v of
the first n seeds, nu = n - 1 and t^2 = n m^2 / v. With effect sizes mu / sigma ~ N(0, g) against 0,

    e_n(r, q) = (1 + n g)^(-1/2) [(1 + t^2 / nu) / (1 + t^2 / (nu (1 + n g)))]^((nu + 1) / 2)

is a likelihood ratio of t^2, free of sigma, and a martingale where mu = 0: it exceeds 1 / alpha at any look with
probability alpha at most, and e_n [m > 0] does so where mu <= 0 too. "Better" has the e-value

    E_n = 1 / R  max over r of  min over q of  e_n(r, q) [m > 0]

with r over the R rates that were fixed before the first seed and q over all that the reference has run: whichever q is
its best, no rate of an equal arm lies above it. "Worse" has the same with the roles exchanged. Each may use alpha / 2.

The largest over R rates is divided by R and not replaced by their mean: the e-processes of two rates are martingales of
their own t's, not of each other's, and a mean of such processes need not keep its level at every look, while R of them
at alpha / R do. Simulated beside the mean, half of the arms 3 points apart were decided after as many seeds.

Over K comparisons Holm's procedure on the running maxima: the largest needs 2 K / alpha, the next 2 (K - 1) / alpha,
and so on; what was decided is never revoked. Differences that E_n does not reject are an interval that holds at all
looks together.

It finds differences only; equivalence needs a number of seeds that was fixed before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorax.stats.effects import Array

FIRST = 3
"""Seeds at the first look: two differences have one degree of freedom."""
EXPECTED = 4.0
"""Variance g of effect sizes under the alternative: differences of about two spreads."""
NEVER = -np.inf


def log_e(mean: ArrayLike, variance: ArrayLike, n: int, g: float = EXPECTED) -> Array:
    """Return the logarithm of the t-mixture e-value against "the mean is 0".

    Args:
        mean: (...) of n differences.
        variance: (...) of the same, with n - 1 below; above 0.
        n: how many.
        g: variance of effect sizes under the alternative.
    """
    t2 = n * np.asarray(mean, dtype=float) ** 2 / np.asarray(variance, dtype=float)
    nu = n - 1
    return -0.5 * np.log1p(n * g) + (nu + 1) / 2 * (np.log1p(t2 / nu) - np.log1p(t2 / (nu * (1 + n * g))))


def critical(log_level: float, n: int, g: float = EXPECTED) -> float:
    """Return the |t| of n differences at which `log_e` reaches a level; infinite where it never does.

    Args:
        log_level: logarithm of the e-value to reach, above 0.
        n: how many differences.
        g: as in `log_e`.

    Examples:
        >>> t = critical(3.0, 8)
        >>> round(float(log_e(t / 8**0.5, 1.0, 8)), 9)
        3.0
    """
    log_ratio = (2 * log_level + math.log1p(n * g)) / n
    if log_ratio >= math.log1p(n * g):
        return math.inf
    ratio = math.exp(log_ratio)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / (1 + n * g)))


def needed(alpha: float, family: int) -> float:
    """Return the logarithm of the e-value that decides the strongest of `family` comparisons, either way."""
    return math.log(2 * family / alpha)


def earliest(alpha: float, family: int, rates: int = 1) -> int:
    """Return the seeds before which no verdict is possible, however large the difference.

    Args:
        alpha: of the family.
        family: comparisons planned.
        rates: that a side has from the start.
    """
    n = FIRST
    while math.isinf(critical(needed(alpha, family) + math.log(rates), n)):
        n += 1
    return n


@dataclass(frozen=True)
class Side:
    """What one arm has at a look."""

    scores: Array
    """(rates, seeds) on test, in the order in which seeds were run."""
    fixed: NDArray[np.bool_]
    """(rates,) which of them were fixed before the first seed."""
    at_edge: bool = False
    """Whether its best rate may lie beyond those that were run; then nothing is said that rests on its best."""

    @classmethod
    def of(cls, scores: ArrayLike, fixed: ArrayLike | None = None, at_edge: bool = False) -> Side:
        """Build it from plain values; by default every rate was fixed before."""
        given = np.atleast_2d(np.asarray(scores, dtype=float))
        return cls(given, np.ones(len(given), dtype=bool) if fixed is None else np.asarray(fixed, dtype=bool), at_edge)


@dataclass(frozen=True)
class Look:
    """All pairs of rates of two arms at one look."""

    seeds: int
    mean: Array
    """(rates of the arm, rates of the reference) of the differences."""
    sd: Array
    """Of the differences; one item at least."""
    fixed: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    """Of either side, which rates were fixed before the first seed."""
    known: tuple[bool, bool]
    """Whether "better" may be said (the reference's best is inside its window), and "worse" (the arm's is)."""

    @property
    def better(self) -> float:
        """Log e-value of "the arm is better"."""
        log = np.where(self.mean > 0, log_e(self.mean, self.sd**2, self.seeds), NEVER)
        return self._largest(log.min(axis=1), 0)

    @property
    def worse(self) -> float:
        """Log e-value of "the arm is worse"."""
        log = np.where(self.mean < 0, log_e(self.mean, self.sd**2, self.seeds), NEVER)
        return self._largest(log.min(axis=0), 1)

    def bounds(self, log_level: float) -> tuple[float, float]:
        """Return the lowest and the highest difference that neither e-value rejects at a level.

        Args:
            log_level: logarithm of the e-value that rejects.
        """
        ends = []
        for side, lower in enumerate((self.mean, -self.mean.T)):
            reach = critical(log_level + math.log(self.fixed[side].sum()), self.seeds)
            sd = self.sd if side == 0 else self.sd.T
            known = self.known[side] and math.isfinite(reach)
            least = (lower - reach * sd / math.sqrt(self.seeds)).min(axis=1) if known else np.full(len(lower), NEVER)
            ends.append(float(least[self.fixed[side]].max()))
        return ends[0], -ends[1]

    def _largest(self, by_rate: Array, side: int) -> float:
        own = by_rate[self.fixed[side]]
        return float(own.max() - math.log(len(own))) if self.known[side] else NEVER


def look(arm: Side, reference: Side, resolution: float = 0.0) -> Look:
    """Compare two arms after the seeds that both have.

    Args:
        arm: its side.
        reference: its side, on the same seeds in the same order.
        resolution: one item; the least sd of a difference.
    """
    d = arm.scores[:, None, :] - reference.scores[None, :, :]
    sd = np.maximum(d.std(axis=-1, ddof=1), max(resolution, 1e-12))
    known = not reference.at_edge, not arm.at_edge
    return Look(d.shape[-1], d.mean(axis=-1), sd, (arm.fixed, reference.fixed), known)


def decided(better: ArrayLike, worse: ArrayLike, alpha: float = 0.05, family: int | None = None) -> NDArray[np.int_]:
    """Return what is known at every look: 1 better, -1 worse, 0 nothing yet.

    Args:
        better: (..., K, looks) log e-values.
        worse: (..., K, looks).
        alpha: chance that any of the K is ever called different although it is not.
        family: comparisons planned; None: K.

    Returns:
        (..., K, looks); once it is not 0 it stays.
    """
    for_better, for_worse = (np.maximum.accumulate(np.asarray(e, dtype=float), axis=-1) for e in (better, worse))
    highest = np.maximum(for_better, for_worse)
    k = highest.shape[-2]
    planned = family or k
    order = np.argsort(-highest, axis=-2, kind="stable")
    ranked = np.take_along_axis(highest, order, axis=-2)
    passes = ranked >= np.log(2 * (planned - np.arange(k)) / alpha)[:, None]
    known = np.empty_like(passes)
    np.put_along_axis(known, order, np.logical_and.accumulate(passes, axis=-2), axis=-2)
    sign = np.where(for_better >= for_worse, 1, -1)
    first = np.take_along_axis(sign, known.argmax(axis=-1)[..., None], axis=-1)
    return np.where(known, first, 0)
