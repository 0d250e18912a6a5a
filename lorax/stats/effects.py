"""Effects, intervals and p-values of paired comparisons; every function works on stacks of tables.

The estimand is the expected score over training seeds on the task's own test set. Seeds are crossed
with items: every arm of a study sees the same seeds and the same items. Scores are fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """An estimated difference with its standard error and degrees of freedom.

    Arrays of one shape (or scalars). An infinite standard error says that nothing is known.
    """

    estimate: Array
    se: Array
    df: Array


def paired_t(differences: ArrayLike, resolution: ArrayLike = 0.0) -> Effect:
    """Effect from per-seed differences: mean, sd / sqrt(n), n - 1 degrees of freedom.

    Args:
        differences: (..., n) score of the arm minus score of the reference, one a seed.
        resolution: one item, 1 / n_items. Scores move in such steps, so a smaller sample sd
            (all seeds alike, floor, ceiling) is raised to it rather than believed.

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

    It speaks about new items of the same kind too, hence is wider than `paired_t`, which speaks
    about the test set at hand.

    Args:
        differences: (..., S, I) item score of the arm minus that of the reference.
        resolution: least believable sd of a per-seed difference, as in `paired_t`.
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
    rest = np.maximum(total - (seeds - 1) * ms_seed - (items - 1) * ms_item, 0)
    ms_error = rest / ((seeds - 1) * (items - 1))
    ms_seed = np.maximum(ms_seed, items * np.asarray(resolution) ** 2)
    ms_sum = np.maximum(ms_seed + ms_item - ms_error, ms_seed)
    spread = ms_seed**2 / (seeds - 1) + ms_item**2 / (items - 1) + ms_error**2 / ((seeds - 1) * (items - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(spread > 0, ms_sum**2 / spread, seeds - 1)
        se = np.where(ms_sum > 0, np.sqrt(ms_sum / (seeds * items)), np.inf)
    return Effect(estimate, se, np.maximum(df, 1.0))


def interval(effect: Effect, confidence: ArrayLike = 0.95) -> tuple[Array, Array]:
    """Two-sided interval estimate -+ t((1 + confidence) / 2, df) se."""
    half = sps.t.ppf((1 + np.asarray(confidence)) / 2, effect.df) * effect.se
    return effect.estimate - half, effect.estimate + half


def p_zero(effect: Effect) -> Array:
    """Two-sided p-value of "no difference"."""
    return 2 * sps.t.sf(np.abs(effect.estimate) / effect.se, effect.df)


def p_margin(effect: Effect, margin: float) -> Array:
    """One-sided p-value of "differs by the margin or more": the larger of the two one-sided tests."""
    return sps.t.sf((margin - np.abs(effect.estimate)) / effect.se, effect.df)


def holm(p: ArrayLike, family: int | None = None) -> Array:
    """Holm-adjusted p-values along the last axis.

    Args:
        p: (..., K) raw p-values.
        family: number of hypotheses planned, K unless told (missing ones still count).

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")
    weight = (family or p.shape[-1]) - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * weight, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


def mean_interval(
    scores: Sequence[float], confidence: float = 0.95, resolution: float = 0.0
) -> tuple[float, float, float, float]:
    """Mean, sd, low and high of one arm's scores over seeds (t interval; one seed: infinite).

    Scores are fractions; the interval is not clipped, so that it stays the test's own.
    """
    effect = paired_t(scores, resolution)
    low, high = interval(effect, confidence)
    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    return float(effect.estimate), sd, float(low), float(high)


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Exact McNemar test between two checkpoints on the same items. Description only.

    It asks whether these two checkpoints differ, not whether the methods do: seeds do not enter.

    Args:
        first: (n_items,) 0/1 scores.
        second: (n_items,) 0/1 scores on the same items.

    Returns:
        items only the first solves, items only the second solves, exact two-sided p.
    """
    a, b = np.asarray(first) > 0.5, np.asarray(second) > 0.5
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(sps.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def bootstrap(
    differences: ArrayLike, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Two-level percentile bootstrap of the mean: seeds and items drawn anew. Description only.

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
    """Two-sided p of a difference between two rates known without their items (unpaired z, pooled).

    For tables of others that give one accuracy a row: seeds are not covered, so it is a lower
    bound on the doubt.
    """
    pooled = (first * n_first + second * n_second) / (n_first + n_second)
    se = np.sqrt(pooled * (1 - pooled) * (1 / n_first + 1 / n_second))
    return 1.0 if se == 0 else float(2 * sps.norm.sf(abs(first - second) / se))


def wilson(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a rate over n items (one checkpoint; seeds are not covered)."""
    z = sps.norm.ppf((1 + confidence) / 2)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))
