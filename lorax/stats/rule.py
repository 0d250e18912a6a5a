"""The rule for verdicts against the reference, and why it keeps its level.

One procedure gives interval and verdict. K comparisons (arms x tasks) are judged at level alpha:

    equivalent   the interval at 1 - alpha / K lies inside (-margin, margin), even if it excludes 0
    better/worse it excludes 0, or the one at 1 - c_j does, c_j = alpha (1 - j / 2K) / (K - j)
    undecided    neither

A study may claim non-inferiority instead (`claim: non_inferior`), which asks about one direction:

    non-inferior the lower end of the interval at 1 - alpha / K lies above -margin: one-sided at alpha / 2K
    better/worse as above; a comparison that is non-inferior is never called worse, as an equivalent one is not

where j counts the comparisons with a smaller p that were called different (Holm's steps; c_0 = alpha / K).

Why c_j and not Holm's alpha / (K - j): a comparison that differs may still be called equivalent by
mistake, and this uses a part of alpha. Of K comparisons let K0 have no difference and K1 differ by the
margin or more. A false "equivalent" needs one tail of a comparison at alpha / K: at most K1 alpha / 2K
in all. Before the first false "better/worse" at most K - K0 comparisons were called different, so its
level is at most c_(K-K0), in all K0 c_(K-K0) = alpha (1 - (K - K0) / 2K). As K1 <= K - K0, the sum is
at most alpha, whatever the dependence. (Plain Holm over the smaller of the two p-values gives 7 % in
such a family, see the calibration.) A false "non-inferior" needs one tail at alpha / K of one of the K1 comparisons
that lie the margin or more below the reference, so the same sum holds; one-sided at 2.5 % in all is the convention of
trials (ICH E9, 1998; CONSORT extension, Piaggio et al. 2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorax.stats import effects

VERDICTS = ("undecided", "better", "worse", "equivalent", "non_inferior")
CLAIMS: Mapping[str, str] = {
    "difference": "two-sided: better, worse or equivalent within the margin",
    "non_inferior": "one-sided: not worse than the reference by the margin",
}
"""What a study sets out to show -> in words."""


class Evidence(Protocol):
    """What is known about differences, arrays (..., K): an estimate, intervals at any level, p-values."""

    @property
    def estimate(self) -> effects.Array:
        """The estimated differences."""

    def interval(self, confidence: ArrayLike) -> tuple[effects.Array, effects.Array]:
        """Return low and high; each end errs with probability (1 - confidence) / 2 at most."""

    def p_zero(self) -> effects.Array:
        """Return the two-sided p-value of "no difference"."""

    def p_margin(self, margin: float) -> effects.Array:
        """Return the p-value of "differs by the margin or more"."""

    def p_below(self, value: float) -> effects.Array:
        """Return the one-sided p-value of "the difference is at most `value`"."""


@dataclass(frozen=True)
class Verdicts:
    """Arrays (..., K): `code` indexes VERDICTS; the other fields are those of `result.Comparison`."""

    code: NDArray[np.int_]
    low: effects.Array
    high: effects.Array
    confidence: effects.Array
    p: effects.Array
    p_adjusted: effects.Array
    p_equivalence: effects.Array
    p_equivalence_adjusted: effects.Array
    p_non_inferior_adjusted: effects.Array
    """Of a difference of -margin or less."""


def decide(
    evidence: Evidence, margin: float, alpha: float = 0.05, family: int | None = None, claim: str = "difference"
) -> Verdicts:
    """Judge families of comparisons by the rule of this module's docstring.

    Args:
        evidence: an `effects.Effect` or a `best_rate.BestRate`, arrays (..., K).
        margin: differences smaller than this do not matter (same unit as the scores).
        alpha: chance of any false verdict in a family.
        family: comparisons planned; None: K.
        claim: name in `CLAIMS`.
    """
    k = family or evidence.estimate.shape[-1]
    p, p_margin = evidence.p_zero(), evidence.p_margin(margin)
    adjusted, level = _step_down(p, k, alpha)
    simultaneous = np.full_like(p, 1 - alpha / k)
    low, high = evidence.interval(simultaneous)
    one_sided = claim == "non_inferior"
    inside = (low > -margin) & (high < margin)
    if one_sided:
        inside = (low > -margin) & (low <= 0) & ~((adjusted <= alpha) & (evidence.estimate > 0))
    apart = ((low > 0) | (high < 0)) & ~inside
    # A comparison that differs at a later step only is shown with the interval of that step. Where this
    # narrower interval lies inside the margin, the rule does not allow "equivalent" and "better" would
    # mislead: undecided.
    step_low, step_high = evidence.interval(1 - level)
    step_inside = (step_low > -margin) & ((step_high <= 0) if one_sided else (step_high < margin))
    later = (adjusted <= alpha) & ~inside & ~apart & ~step_inside
    different = apart | later
    within = VERDICTS.index("non_inferior" if one_sided else "equivalent")
    code = np.where(inside, within, np.where(different, np.where(evidence.estimate > 0, 1, 2), 0))
    return Verdicts(
        code=code,
        low=np.where(later, step_low, low),
        high=np.where(later, step_high, high),
        confidence=np.where(later, 1 - level, simultaneous),
        p=p,
        p_adjusted=adjusted,
        p_equivalence=p_margin,
        p_equivalence_adjusted=np.minimum(2 * k * p_margin, 1.0),
        p_non_inferior_adjusted=np.minimum(2 * k * evidence.p_below(-margin), 1.0),
    )


def _step_down(p: effects.Array, family: int, alpha: float) -> tuple[effects.Array, effects.Array]:
    """Return the adjusted p of each comparison, and the level c_j of the step at which it stands."""
    j = np.arange(p.shape[-1])
    share = (1 - j / (2 * family)) / (family - j)
    rank = p.argsort(axis=-1, kind="stable").argsort(axis=-1)
    return effects.step_down(p, lambda rising: rising / share), alpha * share[rank]
