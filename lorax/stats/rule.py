"""Verdicts against the reference, and letters over all pairs, from the final runs of a study.

One procedure gives interval and verdict. K comparisons (arms x tasks) are judged at level alpha:

    equivalent   the interval at 1 - alpha / K lies inside (-margin, margin), even if it excludes 0
    better/worse it excludes 0, or the one at 1 - c_j does, c_j = alpha (1 - j / 2K) / (K - j)
    undecided    neither

where j counts the differences found at smaller p (Holm, stepping down; c_0 = alpha / K). Why c_j and
not Holm's alpha / (K - j): a comparison found different may still be called equivalent by mistake,
so its share of alpha is not free. Of K comparisons let K0 have no difference and K1 differ by the
margin or more. A false "equivalent" needs one tail of a comparison at alpha / K: at most
K1 alpha / 2K in all. Until the first false "better/worse" at most K - K0 differences were found, so
its level is at most c_(K-K0), in all K0 c_(K-K0) = alpha (1 - (K - K0) / 2K). As K1 <= K - K0, the
sum is at most alpha, whatever the dependence. (Plain Holm over the smaller of the two p-values gives
7 % in such a family, see the calibration.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorax.stats import effects

VERDICTS = ("undecided", "better", "worse", "equivalent")


@dataclass(frozen=True)
class Verdicts:
    """Arrays (..., K): `code` indexes VERDICTS; the rest as in Comparison."""

    code: NDArray[np.int_]
    low: effects.Array
    high: effects.Array
    confidence: effects.Array
    p: effects.Array
    p_adjusted: effects.Array
    p_equivalence: effects.Array
    p_equivalence_adjusted: effects.Array


def decide(effect: effects.Effect, margin: float, alpha: float = 0.05, family: int | None = None) -> Verdicts:
    """Judge stacks of families of comparisons; the module's docstring is the rule and its proof.

    Args:
        effect: arrays (..., K).
        margin: differences smaller than this do not matter (same unit as the scores).
        alpha: chance of any false verdict in a family.
        family: comparisons planned, K unless told.
    """
    k = family or effect.estimate.shape[-1]
    p, p_margin = effects.p_zero(effect), effects.p_margin(effect, margin)
    adjusted, level = _step_down(p, k, alpha)
    simultaneous = np.full_like(p, 1 - alpha / k)
    low, high = effects.interval(effect, simultaneous)
    inside = (low > -margin) & (high < margin)
    apart = ((low > 0) | (high < 0)) & ~inside
    # What only a later step finds is shown at that step's level. Where that narrower interval falls
    # inside the margin, "equivalent" is not licensed and "better" would mislead: undecided.
    step_low, step_high = effects.interval(effect, 1 - level)
    later = (adjusted <= alpha) & ~inside & ~apart & ~((step_low > -margin) & (step_high < margin))
    found = apart | later
    code = np.where(inside, 3, np.where(found, np.where(effect.estimate > 0, 1, 2), 0))
    return Verdicts(
        code=code,
        low=np.where(later, step_low, low),
        high=np.where(later, step_high, high),
        confidence=np.where(later, 1 - level, simultaneous),
        p=p,
        p_adjusted=adjusted,
        p_equivalence=p_margin,
        p_equivalence_adjusted=np.minimum(2 * k * p_margin, 1.0),
    )


def _step_down(p: effects.Array, family: int, alpha: float) -> tuple[effects.Array, effects.Array]:
    """Adjusted p and the level c_j of the step at which each comparison stands."""
    order = np.argsort(p, axis=-1, kind="stable")
    j = np.arange(p.shape[-1])
    share = (1 - j / (2 * family)) / (family - j)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) / share, axis=-1)
    adjusted, level = np.empty_like(p), np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    np.put_along_axis(level, order, np.broadcast_to(alpha * share, p.shape), axis=-1)
    return adjusted, level
