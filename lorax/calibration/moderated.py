"""A moderated t, measured and not shipped unless it holds: variances of all comparisons shrunk towards each other.

With s_k^2 the variance of comparison k on d degrees of freedom, a prior s_0^2 on d_0 is fitted to all K (empirical
Bayes), and (d_0 s_0^2 + d s_k^2) / (d_0 + d) on d_0 + d takes the place of s_k^2.

Source: Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments, sections 6.2 and 4; `limma::squeezeVar`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from lorax.calibration.protocol import at_selected
from lorax.calibration.worlds import World, draws
from lorax.stats.effects import Array, Effect, paired_t
from lorax.stats.rule import VERDICTS, decide

ALPHA, ITEMS = 0.05, 500


def prior(variances: Array, df: int) -> tuple[Array, Array]:
    """Return s_0^2 and d_0 of each family, (...), by the moments of log variances; d_0 is infinite where they agree.

    Args:
        variances: (..., K) above 0.
        df: degrees of freedom of each.
    """
    e = np.log(variances) - special.digamma(df / 2) + np.log(df / 2)
    excess = e.var(axis=-1, ddof=1) - special.polygamma(1, df / 2)
    d0 = 2 * _trigamma_inverse(np.maximum(excess, 1e-8))
    d0 = np.where(excess > 0, d0, np.inf)
    half = np.where(np.isfinite(d0), d0, 1.0) / 2
    shift = np.where(np.isfinite(d0), special.digamma(half) - np.log(half), 0.0)
    return np.exp(e.mean(axis=-1) + shift), d0


def moderated(differences: Array, resolution: float = 0.0) -> Effect:
    """Return effects of per-seed differences with moderated variances.

    Args:
        differences: (..., K, n).
        resolution: one item, the least sd.
    """
    plain = paired_t(differences, resolution)
    n = differences.shape[-1]
    df = n - 1
    variances = plain.se**2 * n
    s0, d0 = (part[..., None] for part in prior(variances, df))
    known = np.isfinite(d0)
    weight = np.where(known, d0, 0.0)
    squeezed = np.where(known, (weight * s0 + df * variances) / (weight + df), s0)
    most = df * differences.shape[-2]
    return Effect(plain.estimate, np.sqrt(squeezed / n), np.broadcast_to(np.minimum(d0 + df, most), plain.df.shape))


def compared(worlds: Mapping[str, World], tables: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return false differences and those found of the paired t and the moderated one, at rates taken as given.

    Args:
        worlds: name -> flat world, in which every rate scores the same; `effects` are of the first arms.
        tables: how many.
        seed: of the simulation.
    """
    out = []
    for name, world in worlds.items():
        counts: dict[str, list[Array]] = {"plain": [], "moderated": []}
        for batch in draws(world, tables, seed):
            scores = at_selected(batch)
            d = scores[:, 1:] - scores[:, :1]
            truth = np.sign(np.where(np.abs(batch.peak) > 1e-9, batch.peak, 0))
            for kind, effect in (("plain", paired_t(d, 1 / ITEMS)), ("moderated", moderated(d, 1 / ITEMS))):
                code = decide(effect, world.margin, ALPHA).code
                sign = (code == VERDICTS.index("better")).astype(int) - (code == VERDICTS.index("worse"))
                wrong, right = (sign != 0) & (sign != truth), (sign == truth) & (truth != 0)
                apart = max(int((truth[0] != 0).sum()), 1)
                counts[kind].append(np.stack([wrong.any(axis=-1), right.sum(axis=-1) / apart], axis=-1))
        for kind, parts in counts.items():
            false, found = np.concatenate(parts).mean(axis=0)
            out.append({"world": name, "t": kind, "tables": tables, "false": float(false), "found": float(found)})
    return out


def _trigamma_inverse(y: Array) -> Array:
    """Return x with trigamma(x) = y > 0, by Newton's steps on 1 / trigamma."""
    x = 0.5 + 1 / y
    for _ in range(50):
        value = special.polygamma(1, x)
        step = value * (1 - value / y) / special.polygamma(2, x)
        x = x + step
        if np.all(-step / x < 1e-8):
            break
    return x
