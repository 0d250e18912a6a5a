"""What a design can show: probabilities of verdicts, minimum detectable effect, attainable p, seeds or items
that would decide a comparison.

Everything is computed for the first step of the test that `rule.decide` applies (level alpha / K), so
that it also holds for an arm where no other arm differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as sps

_NODES = 256


@dataclass(frozen=True)
class Design:
    """What a study can show before (or after) it has run; effects are fractions."""

    family: int
    """Comparisons with the reference, K."""
    alpha: float
    n_seeds: int
    n_items: int
    margin: float
    sd: float
    """Of per-seed differences: assumed in a plan, the typical one of the comparisons in a table."""
    mde: float
    """Smallest true difference called better (or worse) with probability 0.8; inf with one seed."""
    attainable_p: float
    """Smallest corrected p possible: of a difference as large as the scores allow, at this sd."""
    half_width: float
    """Expected half width of the interval that decides the verdict."""
    equivalence_power: float
    """Probability of "equivalent" (or "non-inferior", what the study claims) where there is no difference at all."""
    room: float = 1.0
    """Largest difference the scores allow."""
    claim: str = "difference"
    """See `rule.CLAIMS`."""

    @property
    def can_differ(self) -> bool:
        """Whether a difference that the scores allow would be called different with probability 0.8."""
        return self.mde <= self.room

    @property
    def can_equal(self) -> bool:
        """Whether "equivalent" (or "non-inferior") has an even chance where there is no difference."""
        return self.equivalence_power >= 0.5

    @property
    def _one_sided(self) -> bool:
        return self.claim == "non_inferior"

    @property
    def _aim(self) -> str:
        return "non-inferior" if self._one_sided else "equivalent"

    def sentences(self, spread: str = "sd of paired differences") -> list[str]:
        """Return in words what the design can and cannot show.

        Args:
            spread: what `sd` is, of `estimands.SPREAD`.
        """
        if self.n_seeds < 2:
            return ["One seed: no verdict is possible, whatever the scores."]
        lines = [
            f"{self.family} comparisons, {self.n_seeds} seeds, {self.n_items} items, "
            f"{spread} {100 * self.sd:.2f} points.",
            f"Smallest corrected p attainable: {self.attainable_p:.2g}.",
            f"Minimum detectable effect (80 % power, corrected): {100 * self.mde:.2f} points.",
            f"An arm that does not differ at all is called {self._aim} with probability {self.equivalence_power:.2f} "
            f"(margin {100 * self.margin:.2f} points).",
        ]
        if not self.can_differ:
            lines.append("This design cannot show a difference: it would have to exceed what scores allow.")
        if not self.can_equal:
            lines.append(
                f"This design can hardly show {'non-inferiority' if self._one_sided else 'equivalence'}: its interval "
                f"is about +-{100 * self.half_width:.2f} points against a margin of {100 * self.margin:.2f}."
            )
        if not (self.can_differ or self.can_equal):
            lines.append("It cannot reach any verdict; more seeds, fewer arms or a wider margin would help.")
        return lines


@dataclass(frozen=True)
class Need:
    """What would decide an undecided comparison, if estimate and spread stayed as they are."""

    seeds: int | None
    """Seeds in all; None: more than the search covers, or no estimate of the spread."""
    items: int | None
    """Test items in all with the present seeds; None: more items would not be enough."""
    verdict: str | None
    """The verdict that would result."""


def verdict_probabilities(
    effect: float, sd: float, n_seeds: int, level: float, margin: float, claim: str = "difference"
) -> tuple[float, float, float]:
    """Probabilities of better, worse and equivalent (or non-inferior, if better or not) under the paired t.

    The sample sd s is integrated out: given s, with half width h = t s / sqrt(n), the verdict is
    better if the estimate exceeds max(h, margin - h), equivalent if it is within margin - h; under claim
    `non_inferior` better if it exceeds h, non-inferior if it exceeds h - margin, worse below -h and that.

    Args:
        effect: true difference.
        sd: true sd of per-seed differences.
        n_seeds: pairs.
        level: two-sided level, alpha / K.
        margin: of equivalence or non-inferiority.
        claim: name in `rule.CLAIMS`.
    """
    if n_seeds < 2:
        return 0.0, 0.0, 0.0
    df, root = n_seeds - 1, np.sqrt(n_seeds)
    half = quantile(level, df) * sd * _sd_ratios(df) / root
    spread = sd / root
    bar = np.maximum(half, margin - half)
    worse = special.ndtr((-effect - bar) / spread).mean()
    if claim == "non_inferior":
        better, aim = (special.ndtr((effect - half + least) / spread).mean() for least in (0.0, margin))
        return float(better), float(worse), float(aim)
    better = special.ndtr((effect - bar) / spread).mean()
    inside = np.maximum(margin - half, 0.0)
    equal = (special.ndtr((inside - effect) / spread) - special.ndtr((-inside - effect) / spread)).mean()
    return float(better), float(worse), float(equal)


@lru_cache(maxsize=256)
def quantile(level: float, df: int) -> float:
    """Return the t quantile of a two-sided interval at 1 - level."""
    return float(sps.t.ppf(1 - level / 2, df))


@lru_cache(maxsize=256)
def _sd_ratios(df: int) -> np.ndarray:
    """Return quantiles of sample sd / true sd, at the middles of equal shares."""
    nodes = (np.arange(_NODES) + 0.5) / _NODES
    return np.sqrt(sps.chi2.ppf(nodes, df) / df)


def detectable(
    sd: float, n_seeds: int, level: float, margin: float, power: float = 0.8, claim: str = "difference"
) -> float:
    """Smallest true difference that is called better with probability `power`; inf with one seed."""
    if n_seeds < 2 or not np.isfinite(sd):
        return float("inf")
    if sd <= 0:
        return margin

    def shortfall(effect: float) -> float:
        return verdict_probabilities(effect, sd, n_seeds, level, margin, claim)[0] - power

    top = max(sd, margin)
    while shortfall(top) < 0:
        top *= 2
    return float(optimize.brentq(shortfall, 0.0, top, xtol=1e-6))


def typical_sd(se: ArrayLike, n_seeds: ArrayLike, df: ArrayLike) -> np.ndarray:
    """Typical sd of per-seed differences in a family (last axis): a median-unbiased median over comparisons.

    A median, so that one arm with a very large spread does not change it.

    Args:
        se: (..., K) standard errors.
        n_seeds: pairs behind each.
        df: (..., K) degrees of freedom.
    """
    middle = np.median(np.asarray(df, dtype=float), axis=-1)
    return np.sqrt(np.median(np.asarray(se) ** 2 * n_seeds, axis=-1) * middle / sps.chi2.ppf(0.5, middle))


def half_width(sd: float, n_seeds: int, level: float) -> float:
    """Half width of the two-sided interval at 1 - level, at the true sd."""
    if n_seeds < 2:
        return float("inf")
    return float(sps.t.ppf(1 - level / 2, n_seeds - 1) * sd / np.sqrt(n_seeds))


def design(
    *,
    family: int,
    n_seeds: int,
    n_items: int,
    sd: float,
    margin: float,
    alpha: float = 0.05,
    room: float = 1.0,
    claim: str = "difference",
) -> Design:
    """Compute what a design can show.

    Args:
        family: comparisons with the reference, K.
        n_seeds: final seeds that arm and reference share.
        n_items: test items; differences are not resolved below 1 / n_items.
        sd: of the per-seed differences (fraction).
        margin: of equivalence (fraction).
        alpha: of the family.
        room: largest difference the scores allow (fraction).
        claim: name in `rule.CLAIMS`.
    """
    sd = max(sd, 1 / n_items if n_items else 0.0)
    level = alpha / max(family, 1)
    p = 1.0
    if n_seeds >= 2:
        p = min(1.0, family * 2 * float(sps.t.sf(room * np.sqrt(n_seeds) / sd, n_seeds - 1)))
    return Design(
        family=family,
        alpha=alpha,
        n_seeds=n_seeds,
        n_items=n_items,
        margin=margin,
        sd=sd,
        mde=detectable(sd, n_seeds, level, margin, claim=claim),
        attainable_p=p,
        half_width=half_width(sd, n_seeds, level),
        equivalence_power=verdict_probabilities(0.0, sd, n_seeds, level, margin, claim)[2],
        room=room,
        claim=claim,
    )


def need(
    estimate: float,
    sd: float,
    n_seeds: int,
    n_items: int,
    level: float,
    margin: float,
    item_noise: float | None = None,
    most: int = 200,
    claim: str = "difference",
) -> Need:
    """Return how many seeds, or items, would move the interval off 0 or inside the margin, all else unchanged.

    Args:
        estimate: observed difference (fraction).
        sd: observed sd of per-seed differences.
        n_seeds: present seeds.
        n_items: present items.
        level: two-sided level of the interval, alpha / K.
        margin: of equivalence.
        item_noise: part of sd that comes from items; it shrinks as 1 / sqrt(items).
        most: up to so many seeds, and so many times the present items, are tried.
        claim: name in `rule.CLAIMS`.
    """
    sd = max(sd, 1 / n_items if n_items else 0.0)  # at least one item, as in the verdict
    seeds = np.arange(max(2, n_seeds + 1), max(most, n_seeds + 1) + 1)
    half = sps.t.ppf(1 - level / 2, seeds - 1) * sd / np.sqrt(seeds)
    at, verdict = _first_decided(estimate, half, margin, claim)
    seeds_needed = None if at is None else int(seeds[at])
    items_needed = None
    if item_noise is not None and n_seeds >= 2:
        factor = np.geomspace(1, most, 400)[1:]
        seed_variance = max(sd**2 - item_noise**2, 0.0)
        half = sps.t.ppf(1 - level / 2, n_seeds - 1) * np.sqrt((seed_variance + item_noise**2 / factor) / n_seeds)
        at, with_items = _first_decided(estimate, half, margin, claim)
        items_needed = None if at is None else int(np.ceil(n_items * factor[at]))
        verdict = verdict or with_items
    return Need(seeds_needed, items_needed, verdict)


def _first_decided(estimate: float, half: ArrayLike, margin: float, claim: str) -> tuple[int | None, str | None]:
    """Return the place of the first half width at which the interval decides, and its verdict; None where none does."""
    one_sided = claim == "non_inferior"
    equal = (-estimate if one_sided else abs(estimate)) + np.asarray(half) < margin
    differ = np.asarray(half) < abs(estimate)
    hits = np.flatnonzero(equal | differ)
    if not len(hits):
        return None, None
    at = int(hits[0])
    if differ[at] and (estimate > 0 if one_sided else not equal[at]):
        return at, "better" if estimate > 0 else "worse"
    return at, ("non-inferior" if one_sided else "equivalent") if equal[at] else "worse"
