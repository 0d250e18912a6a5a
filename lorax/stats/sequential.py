"""Verdicts between methods that may be looked at after every seed: an e-process instead of an interval, without picks.

Per seed s let d_s = y_a,s(r) - y_0,s(q) for a rate r of the arm and q of the reference, with mean m and variance v of
the first n seeds, nu = n - 1 and t^2 = n m^2 / v. With effect sizes mu / sigma ~ N(0, g) against 0,

    e_n(r, q) = (1 + n g)^(-1/2) [(1 + t^2 / nu) / (1 + t^2 / (nu (1 + n g)))]^((nu + 1) / 2)

is a likelihood ratio of t^2, free of sigma, and a martingale where mu = 0: it exceeds 1 / alpha at any look with
probability alpha at most. "Better" has the e-value

    E_n = mean over r of min over q of e_n(r, q) [m > 0]

because whichever q is the reference's best, no rate of an equal arm lies above it; "worse" has the same with the roles
exchanged. Each direction may use alpha / 2. Over K comparisons Holm's procedure on the running maxima: the largest
needs 2 K / alpha, the next 2 (K - 1) / alpha, and so on; what was decided is never revoked.

It finds differences only; equivalence needs a number of seeds that was fixed before. `lorax.calibration` measures it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorax.stats.effects import Array

FIRST = 3
"""Seeds at the first look: two differences have one degree of freedom."""
NEVER = -np.inf


def log_e(mean: ArrayLike, variance: ArrayLike, n: int, g: float = 4.0) -> Array:
    """Return the logarithm of the t-mixture e-value against "the mean is 0".

    Args:
        mean: (...) of n differences.
        variance: (...) of the same, with n - 1 below; above 0.
        n: how many.
        g: variance of effect sizes under the alternative; 4 expects differences of about two spreads.
    """
    t2 = n * np.asarray(mean, dtype=float) ** 2 / np.asarray(variance, dtype=float)
    nu = n - 1
    return -0.5 * np.log1p(n * g) + (nu + 1) / 2 * (np.log1p(t2 / nu) - np.log1p(t2 / (nu * (1 + n * g))))


def evidence(arm: ArrayLike, reference: ArrayLike, resolution: float = 0.0, g: float = 4.0) -> tuple[Array, Array]:
    """Return log e-values of "better" and of "worse" at every look.

    Args:
        arm: (..., rates, seeds) test scores, in the order in which seeds were run.
        reference: (..., rates, seeds) on the same seeds.
        resolution: one item; the least sd of a difference.
        g: as in `log_e`.

    Returns:
        Two arrays (..., looks), at `FIRST`, `FIRST` + 1, ... seeds.
    """
    a, b = np.asarray(arm, dtype=float), np.asarray(reference, dtype=float)
    d = a[..., :, None, :] - b[..., None, :, :]
    better, worse = [], []
    for n in range(FIRST, d.shape[-1] + 1):
        mean = d[..., :n].mean(axis=-1)
        variance = np.maximum(d[..., :n].var(axis=-1, ddof=1), max(resolution**2, 1e-24))
        value = log_e(mean, variance, n, g)
        better.append(_log_mean(np.where(mean > 0, value, NEVER).min(axis=-1)))
        worse.append(_log_mean(np.where(mean < 0, value, NEVER).min(axis=-2)))
    return np.stack(better, axis=-1), np.stack(worse, axis=-1)


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
    for_better, for_worse = np.asarray(better, dtype=float), np.asarray(worse, dtype=float)
    highest = np.maximum.accumulate(np.maximum(for_better, for_worse), axis=-1)
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


def _log_mean(values: Array) -> Array:
    """Return the logarithm of the mean of exp(values) over the last axis."""
    return np.logaddexp.reduce(values, axis=-1) - np.log(values.shape[-1])
