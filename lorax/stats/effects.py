"""Effects, intervals and p-values of paired comparisons.

The estimand is the expected score over training seeds on the test set of the task. Seeds are crossed
with items: every arm of a study sees the same seeds and the same items. Scores are fractions.

Functions of arrays (..., K) work on many tables at once, as the calibration needs. Tests that describe
one pair of checkpoints come from statsmodels, imported where needed because it loads pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """An estimated difference with its standard error and degrees of freedom.

    Arrays of one shape (or scalars). An infinite standard error means that nothing is known.
    """

    estimate: Array
    se: Array
    df: Array

    def interval(self, confidence: ArrayLike = 0.95) -> tuple[Array, Array]:
        """Return the two-sided interval estimate -+ t((1 + confidence) / 2, df) se."""
        half = sps.t.ppf((1 + np.asarray(confidence)) / 2, self.df) * self.se
        return self.estimate - half, self.estimate + half

    def p_zero(self) -> Array:
        """Return the two-sided p-value of "no difference"."""
        return 2 * sps.t.sf(np.abs(self.estimate) / self.se, self.df)

    def p_margin(self, margin: float) -> Array:
        """Return the p-value of "differs by the margin or more": the larger of the two one-sided tests."""
        return sps.t.sf((margin - np.abs(self.estimate)) / self.se, self.df)

    def p_below(self, value: float) -> Array:
        """Return the one-sided p-value of "the difference is at most `value`"."""
        return sps.t.sf((self.estimate - value) / self.se, self.df)


def paired_t(differences: ArrayLike, resolution: ArrayLike = 0.0) -> Effect:
    """Effect from per-seed differences: mean, sd / sqrt(n), n - 1 degrees of freedom.

    Args:
        differences: (..., n) score of the arm minus score of the reference, one per seed.
        resolution: one item, 1 / n_items. Scores move in such steps, so a smaller sample sd
            (all seeds equal, floor, ceiling) is raised to it.

    Returns:
        Effect of shape (...). With n = 1, or with neither spread nor a resolution, se is infinite.
    """
    d = np.asarray(differences, dtype=float)
    n = d.shape[-1]
    estimate = d.mean(axis=-1)
    if n < 2:
        return Effect(estimate, np.full_like(estimate, np.inf), np.ones_like(estimate))
    sd = np.maximum(d.std(axis=-1, ddof=1), resolution)
    se = np.where(sd > 1e-12, sd / np.sqrt(n), np.inf)
    return Effect(estimate, se, np.full_like(estimate, n - 1))


def crossed(differences: ArrayLike, resolution: ArrayLike = 0.0) -> Effect:
    """Effect from seeds x items, both random: d_si = theta + u_s + v_i + e_si.

        var = (MS_seed + MS_item - MS_error) / (S I), Satterthwaite degrees of freedom.

    It covers new items of the same kind too, so it is wider than `paired_t`, which covers this test
    set only.

    Args:
        differences: (..., S, I) item score of the arm minus that of the reference.
        resolution: smallest sd of a per-seed difference that is accepted, as in `paired_t`.
    """
    d = np.asarray(differences, dtype=float)
    seeds, items = d.shape[-2:]
    estimate = d.mean(axis=(-2, -1))
    if seeds < 2 or items < 2:
        return Effect(estimate, np.full_like(estimate, np.inf), np.ones_like(estimate))
    by_seed, by_item = d.mean(axis=-1), d.mean(axis=-2)
    ms_seed = items * by_seed.var(axis=-1, ddof=1)
    ms_item = seeds * by_item.var(axis=-1, ddof=1)
    total = ((d - estimate[..., None, None]) ** 2).sum(axis=(-2, -1))
    ss_error = np.maximum(total - (seeds - 1) * ms_seed - (items - 1) * ms_item, 0)
    ms_error = ss_error / ((seeds - 1) * (items - 1))
    ms_seed = np.maximum(ms_seed, items * np.asarray(resolution) ** 2)
    ms_sum = np.maximum(ms_seed + ms_item - ms_error, ms_seed)
    spread = ms_seed**2 / (seeds - 1) + ms_item**2 / (items - 1) + ms_error**2 / ((seeds - 1) * (items - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(spread > 0, ms_sum**2 / spread, seeds - 1)
        se = np.where(ms_sum > 0, np.sqrt(ms_sum / (seeds * items)), np.inf)
    return Effect(estimate, se, np.maximum(df, 1.0))


def step_down(p: ArrayLike, correct: Callable[[Array], Array]) -> Array:
    """Adjusted p-values of a step-down procedure along the last axis.

        adjusted_(j) = min(1, max_{i <= j} correct(p)_(i)),   p_(0) <= p_(1) <= ...

    Args:
        p: (..., K) raw p-values.
        correct: (..., K) p-values in rising order -> each corrected for its step.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.maximum.accumulate(correct(np.take_along_axis(p, order, -1)), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


def holm(p: ArrayLike) -> Array:
    """Holm-adjusted p-values along the last axis: the smallest times K, the next times K - 1, and so on.

    Equal to `statsmodels.stats.multitest.multipletests(method="holm")`, which takes one family per call and
    collects garbage at each (about 30 ms), so that the calibration's 40,000 families would take 20 minutes.

    Args:
        p: (..., K) raw p-values.

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=float)
    return step_down(p, lambda rising: rising * (p.shape[-1] - np.arange(p.shape[-1])))


def mean_interval(
    scores: Sequence[float], confidence: float = 0.95, resolution: float = 0.0
) -> tuple[float, float, float, float]:
    """Mean, sd, low and high of one arm's scores over seeds (t interval; one seed: infinite).

    Scores are fractions; the interval is not cut at 0 and 1, so that it agrees with the test.
    """
    effect = paired_t(scores, resolution)
    low, high = effect.interval(confidence)
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    return float(effect.estimate), sd, float(low), float(high)


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Exact McNemar test between two checkpoints on the same items. Description only.

    It asks whether these two checkpoints differ, not whether the methods do: seeds do not enter.

    Args:
        first: (n_items,) scores, 0 or 1; of scores in between the larger wins, which makes this the sign test.
        second: (n_items,) scores on the same items.

    Returns:
        items only the first solves, items only the second solves, exact two-sided p.

    Source: `statsmodels.stats.contingency_tables.mcnemar`.
    """
    from statsmodels.stats import contingency_tables

    a, b = np.asarray(first), np.asarray(second)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return only_a, only_b, float(contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)


def bootstrap(
    differences: ArrayLike, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Two-level percentile bootstrap of the mean: seeds and items are resampled. Description only.

    Args:
        differences: (S, I) item score of the arm minus that of the reference.
        confidence: of the percentile interval.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        low, high.
    """
    d = np.asarray(differences, dtype=float)
    generator = np.random.default_rng(seed)
    seeds, items = d.shape
    # Multinomial counts as weights: mean_b = w_seed^T d w_item, with no copy of d per draw.
    w_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    w_item = generator.multinomial(items, np.full(items, 1 / items), size=draws) / items
    means = np.einsum("bs,si,bi->b", w_seed, d, w_item, optimize=True)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def two_proportions(first: float, n_first: int, second: float, n_second: int) -> float:
    """Two-sided p of a difference between two rates known without their items.

        z = (a - b) / sqrt(p (1 - p) (1 / n_a + 1 / n_b)),   p the rate of both together

    For published tables that give one accuracy per row. Seeds are not covered, so the true p is larger.

    Args:
        first: rate of one row.
        n_first: its items.
        second: rate of the other row.
        n_second: its items.

    Source: `statsmodels.stats.proportion.proportions_ztest`.
    """
    from statsmodels.stats.proportion import proportions_ztest

    counts, sizes = [first * n_first, second * n_second], [n_first, n_second]
    if sum(counts) in (0, sum(sizes)):  # all or none solved: no spread, no difference
        return 1.0
    return float(proportions_ztest(counts, sizes)[1])


def wilson(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a rate over n items (one checkpoint; seeds are not covered).

    Source: `statsmodels.stats.proportion.proportion_confint`.
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(rate * n, n, 1 - confidence, method="wilson")
    return max(float(low), 0.0), min(float(high), 1.0)
