"""Verdicts against the reference, and letters over all pairs, from the final runs of a study.

One procedure gives interval and verdict. K comparisons (arms x tasks) are judged at level alpha:

    equivalent   the interval at 1 - alpha / K lies inside (-margin, margin), even if it excludes 0
    better/worse the interval at 1 - c_j excludes 0, c_j = alpha (1 - j / 2K) / (K - j)
    undecided    neither

where j counts the differences found at smaller p (Holm, stepping down). Why c_j and not Holm's
alpha / (K - j): a comparison found different may still be called equivalent by mistake, so its
share of alpha is not free. Of K comparisons let K0 have no difference and K1 differ by the margin
or more. A false "equivalent" needs one tail of a comparison at alpha / K: at most K1 alpha / 2K in
all. Until the first false "better/worse" at most K - K0 differences were found, so its level is at
most c_(K-K0), in all K0 c_(K-K0) = alpha (1 - (K - K0) / 2K). As K1 <= K - K0, the sum is at most
alpha, whatever the dependence. (Plain Holm over the smaller of the two p-values reaches 1.5 alpha.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorax.errors import UserError, near
from lorax.studies import power, stats
from lorax.studies.verdicts_letters import compact_letters

VERDICTS = ("undecided", "better", "worse", "equivalent")
PROCEDURES = ("paired_t", "crossed")


@dataclass(frozen=True)
class Final:
    """One final run as the statistics see it."""

    arm: str
    task: str
    seed: int | None
    """None: the arm has no seed (frozen base); its one score meets every seed of the others."""
    score: float
    """Fraction 0..1 on the test split. A diverged run: the score of the diverged model if it was
    evaluated, else the majority class's share, else 0."""
    n_items: int
    diverged: bool = False
    items: Mapping[str, float] | None = None
    """Item id -> score, where kept."""


@dataclass(frozen=True)
class ArmResult:
    """One row of the main table in one task."""

    arm: str
    task: str
    scores: dict[int | None, float]
    """Seed -> score."""
    mean: float
    sd: float
    """Over seeds; nan with one."""
    low: float
    high: float
    """t interval over seeds at 1 - alpha, for this arm alone (description); infinite with one seed."""
    n_seeds: int
    n_items: int
    diverged: int
    """How many of its final runs diverged."""
    letters: str = ""
    """Arms of one task that share a letter are not separated."""


@dataclass(frozen=True)
class Comparison:
    """One arm against the reference in one task; differences are arm minus reference."""

    task: str
    arm: str
    reference: str
    verdict: str
    """better | worse | equivalent | undecided."""
    estimate: float
    low: float
    high: float
    """The interval that gave the verdict, at `confidence`."""
    confidence: float
    se: float
    df: float
    sd: float
    """Of the per-seed differences."""
    p: float
    """Two-sided, of no difference, before correction."""
    p_adjusted: float
    p_equivalence: float
    """Of a difference of the margin or more, before correction."""
    p_equivalence_adjusted: float
    seeds: tuple[int, ...]
    """Seeds that both arms have."""
    n_items: int
    item_noise: float | None
    """Part of `sd` that items alone would make (independent flips between seeds); None without items."""
    note: str = ""
    """Why nothing can be said, or what is missing."""


@dataclass(frozen=True)
class Pair:
    """Two arms in one task, for the letters and for heat maps; first minus second."""

    task: str
    first: str
    second: str
    estimate: float
    p: float
    p_adjusted: float
    separated: bool


@dataclass(frozen=True)
class StudyResult:
    """Everything the tables say about final runs."""

    reference: str
    metric: str
    margin: float
    alpha: float
    procedure: str
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[Pair, ...]
    design: power.Design
    """Smallest attainable p and minimum detectable effect of the same corrected test."""
    notes: tuple[str, ...] = ()

    def arm(self, task: str, arm: str) -> ArmResult | None:
        """Return one row, or None where it has no final run."""
        return next((row for row in self.arms if (row.task, row.arm) == (task, arm)), None)

    def comparison(self, task: str, arm: str) -> Comparison | None:
        """Return one comparison with the reference, or None."""
        return next((row for row in self.comparisons if (row.task, row.arm) == (task, arm)), None)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in order of appearance."""
        return tuple(dict.fromkeys(row.task for row in self.arms))


@dataclass(frozen=True)
class Verdicts:
    """Arrays (..., K): `code` indexes VERDICTS; the rest as in Comparison."""

    code: NDArray[np.int_]
    low: stats.Array
    high: stats.Array
    confidence: stats.Array
    p: stats.Array
    p_adjusted: stats.Array
    p_equivalence: stats.Array
    p_equivalence_adjusted: stats.Array


def decide(effect: stats.Effect, margin: float, alpha: float = 0.05, family: int | None = None) -> Verdicts:
    """Judge stacks of families of comparisons; the module's docstring is the rule and its proof.

    Args:
        effect: arrays (..., K).
        margin: differences smaller than this do not matter (same unit as the scores).
        alpha: chance of any false verdict in a family.
        family: comparisons planned, K unless told.
    """
    k = family or effect.estimate.shape[-1]
    p, p_margin = stats.p_zero(effect), stats.p_margin(effect, margin)
    adjusted, level = _step_down(p, k, alpha)
    simultaneous = np.full_like(p, 1 - alpha / k)
    low, high = stats.interval(effect, simultaneous)
    inside = (low > -margin) & (high < margin)
    stepped_low, stepped_high = stats.interval(effect, 1 - level)
    # At its own later level an interval may fall inside the margin, where "equivalent" is not licensed.
    found = (adjusted <= alpha) & ~inside & ~((stepped_low > -margin) & (stepped_high < margin))
    code = np.where(inside, 3, np.where(found, np.where(effect.estimate > 0, 1, 2), 0))
    return Verdicts(
        code=code,
        low=np.where(found, stepped_low, low),
        high=np.where(found, stepped_high, high),
        confidence=np.where(found, 1 - level, simultaneous),
        p=p,
        p_adjusted=adjusted,
        p_equivalence=p_margin,
        p_equivalence_adjusted=np.minimum(2 * k * p_margin, 1.0),
    )


def _step_down(p: stats.Array, family: int, alpha: float) -> tuple[stats.Array, stats.Array]:
    """Adjusted p and the level c_j of the step at which each comparison stands."""
    order = np.argsort(p, axis=-1, kind="stable")
    j = np.arange(p.shape[-1])
    share = (1 - j / (2 * family)) / (family - j)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) / share, axis=-1)
    adjusted, level = np.empty_like(p), np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    np.put_along_axis(level, order, np.broadcast_to(alpha * share, p.shape), axis=-1)
    return adjusted, level


def judge(
    finals: Sequence[Final],
    *,
    reference: str,
    margin: float,
    alpha: float = 0.05,
    procedure: str = "paired_t",
    metric: str = "score",
    arms: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> StudyResult:
    """Judge the final runs of a study.

    Args:
        finals: one entry a final run, each (arm, task, seed) once.
        reference: the arm that the others are compared with.
        margin: differences smaller than this do not matter; in the unit of the scores.
        alpha: chance of any false verdict among all comparisons with the reference, and of any
            false separation among all pairs.
        procedure: `paired_t` (estimand: this test set) or `crossed` (new items of the same kind too).
        metric: name of the score, passed through.
        arms: planned arms in display order; all that occur unless told. Arms without runs still
            count in the family.
        tasks: planned tasks, likewise.

    Returns:
        StudyResult: arms and comparisons in order tasks x arms.

    Raises:
        UserError: the reference has no final run, or a (arm, task, seed) occurs twice.
    """


def would_need(result: StudyResult, comparison: Comparison, most: int = 200) -> power.Need:
    """How many seeds, or how many test items, would decide an undecided comparison.

    Supposes that estimate and spread stay as they are. Items help only with the part of the spread
    that items make (`item_noise`).
    """
