"""The best-rate interval: one method against another, each at its best learning rate.

The estimand `method` is max_r mu_a(r) - max_q mu_0(q): the best expected score of arm a on the rates that it ran,
minus that of the reference. No rate is known to be the best one. Every seed runs every rate; validation picks one
rate an arm, r* and q*; test scores y_s(r) of seed s select nothing. With t bounds over seeds, paired:

    low  = min over the reference's rates q of the lower bound of  mean_s (y_a,s(r*) - y_0,s(q))
    high = max over the arm's rates r of the upper bound of        mean_s (y_a,s(r) - y_0,s(q*))

Why each end keeps its level: the arm's pick is at most as good as its best rate, mu_a(r*) <= max_r mu_a(r), and
among all q is the reference's best, whichever it is; so low exceeds the truth only if the bound at that one q does
(an intersection-union bound: no correction over rates). The same holds for `high`. The estimate is the difference
at the two picks; it lies between the ends. With one rate each, both ends are those of the paired t.

Picks are pooled over seeds: simulated against leave-one-out picks they kept the level as well, with intervals
3 to 8 % shorter (`lorax.calibration`).

Where an arm's best lies at the edge of what was run, its true best may lie beyond: its end is infinite. Then the
arm cannot be called worse, nothing can be called better than such a reference, and neither is ever equivalent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from lorax.stats.effects import Array, Effect, paired_t
from lorax.stats.selection import pick


@dataclass(frozen=True)
class Window:
    """Runs of one arm: every rate of its window on every seed."""

    test: Array
    """(..., rates, seeds), or (..., rates, seeds, items)."""
    best: NDArray[np.intp]
    """(...) place of the rate that validation picks."""
    at_edge: NDArray[np.bool_]
    """(...) whether the pick is the lowest or highest of several rates."""

    @classmethod
    def of(cls, test: ArrayLike, validation: ArrayLike, loss: ArrayLike | None = None) -> Window:
        """Pick the rate with the best mean on validation; ties by mean loss, then the lower rate.

        Args:
            test: (..., rates, seeds) scores of the same runs on test; nothing is picked by them.
            validation: (..., rates, seeds); -inf where a run diverged.
            loss: (..., rates, seeds) on validation; None: ties go to the lower rate.
        """
        best = pick(validation, np.zeros_like(validation) if loss is None else loss)
        rates = np.shape(validation)[-2]
        return cls(np.asarray(test, dtype=float), best, (rates > 1) & ((best == 0) | (best == rates - 1)))

    @property
    def at_best(self) -> Array:
        """Scores at the pick, (..., 1, seeds[, items])."""
        place = self.best.reshape(self.best.shape + (1,) * (self.test.ndim - self.best.ndim))
        return np.take_along_axis(self.test, place, axis=self.best.ndim)


@dataclass(frozen=True)
class BestRate:
    """Evidence about differences between methods, arrays (...); see this module's docstring."""

    estimate: Array
    """At the picks."""
    below: Effect
    """(..., rates of the reference): the arm at its pick minus the reference at each rate."""
    above: Effect
    """(..., rates of the arm): the arm at each rate minus the reference at its pick."""

    def interval(self, confidence: ArrayLike = 0.95) -> tuple[Array, Array]:
        """Return low and high; each end errs with probability (1 - confidence) / 2 at most."""
        level = np.asarray(confidence)[..., None]
        return self.below.interval(level)[0].min(axis=-1), self.above.interval(level)[1].max(axis=-1)

    def p_zero(self) -> Array:
        """Return the two-sided p-value of "no difference": twice the smaller of the two one-sided ones."""
        return np.minimum(2 * np.minimum(self.p_below(0.0), self._p_high(0.0)), 1.0)

    def p_margin(self, margin: float) -> Array:
        """Return the p-value of "differs by the margin or more": the larger of the two one-sided tests."""
        return np.maximum(self.p_below(-margin), self._p_high(margin))

    def spread(self, confidence: float, n_seeds: int) -> float:
        """Return the sd of per-seed differences whose paired t interval would be as wide as this single one.

        With one rate each it is the sd itself; infinite where an end is, or with less than two seeds.
        """
        if self.below.se.size == self.above.se.size == 1:
            return float(self.below.se[0]) * n_seeds**0.5 if n_seeds else float("inf")
        low, high = self.interval(confidence)
        half = float(high - low) / 2
        return (
            half * n_seeds**0.5 / float(sps.t.ppf((1 + confidence) / 2, n_seeds - 1)) if n_seeds > 1 else float("inf")
        )

    def p_below(self, value: float) -> Array:
        """Return the one-sided p-value of "the difference is at most `value`": the largest over the rates."""
        return self.below.p_below(value).max(axis=-1)

    def _p_high(self, value: float) -> Array:
        """Return the p-value of "the difference is at least `value`"."""
        return sps.t.sf((value - self.above.estimate) / self.above.se, self.above.df).max(axis=-1)


def compare(arm: Window, reference: Window, effect: Callable[[Array], Effect] = paired_t) -> BestRate:
    """Compare two methods, each at its best rate.

    Args:
        arm: its window.
        reference: its window, on the same seeds in the same order; rates may be others, and their number too.
        effect: differences (..., rates, seeds[, items]) -> their effects; `paired_t` or `crossed` with a resolution.

    Examples:
        >>> test = [[0.50, 0.52, 0.51], [0.60, 0.61, 0.62]]
        >>> window = Window.of(test, validation=test)
        >>> compare(window, window).estimate.item()
        0.0
    """
    below = effect(arm.at_best - reference.test)
    above = effect(arm.test - reference.at_best)
    estimate = np.take_along_axis(below.estimate, reference.best[..., None], axis=-1)[..., 0]
    return BestRate(estimate, _unknown(below, reference.at_edge), _unknown(above, arm.at_edge))


def _unknown(effect: Effect, where: NDArray[np.bool_]) -> Effect:
    """Return the effect with an infinite standard error where the best of the side that varies is at the edge."""
    return Effect(effect.estimate, np.where(where[..., None], np.inf, effect.se), effect.df)


def hidden(window: ArrayLike, best: int) -> tuple[float, float]:
    """Return by how much a method's best may exceed its best on the lattice, because it lies between two rates.

    Args:
        window: (rates,) mean scores.
        best: place of the best one, not at an edge.

    Returns:
        The excess of the parabola through the best and its neighbours, and the most that any curve allows that
        bends only downwards: the larger of the steps down to the neighbours.

    Examples:
        >>> hidden([0.5, 0.6, 0.5], 1)
        (0.0, 0.1)
    """
    y = np.asarray(window, dtype=float)
    if not 0 < best < len(y) - 1:
        return float("inf"), float("inf")
    left, right = y[best] - y[best - 1], y[best] - y[best + 1]
    bend = left + right
    slope = (left - right) / 2
    vertex = slope**2 / (2 * bend) if bend > 0 else float("inf")
    steps = max(left, right, 0.0)
    return float(round(min(vertex, steps), 12)), float(round(steps, 12))
