"""Input and output of the statistics: final runs in; arms, comparisons and pairs out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorax.stats import power
from lorax.stats.courses import Course


@dataclass(frozen=True)
class Final:
    """One final run as the statistics see it."""

    arm: str
    task: str
    seed: int | None
    """None: the arm has no seed (frozen base); its one score is paired with every seed of the others."""
    score: float
    """Fraction 0..1 on the test split. Of a diverged run: its score if it was evaluated, else the share
    of the majority class, else 0."""
    n_items: int
    diverged: bool = False
    items: Mapping[str, float] | None = None
    """Item id -> score, where kept."""
    lr: float | None = None
    """Of this run, where an arm ran several rates (estimand `method`)."""
    validation: float | None = None
    """Score of the same run on validation; it picks the arm's rate. -inf where the run diverged."""
    validation_loss: float = math.inf
    floor: float = 0.0
    """What is scored without having learnt anything: the share of the majority class, or 0."""


@dataclass(frozen=True)
class ArmResult:
    """One row of the main table in one task."""

    arm: str
    task: str
    scores: dict[int | None, float]
    """Seed -> score; at `lr` where the arm ran several rates."""
    mean: float
    sd: float
    """Over seeds; nan with one."""
    low: float
    high: float
    """t interval over seeds at 1 - alpha, for this arm only (description); infinite with one seed. Under estimand
    `method` of its best rate: from the low end at the pick to the highest end of any rate."""
    n_seeds: int
    n_items: int
    diverged: int
    """How many of its final runs diverged."""
    letters: str = ""
    """Two arms of one task that share a letter are not separated: the verdict says so for pairs with the reference,
    Holm's procedure over all other pairs for these."""
    lr: float | None = None
    """The rate that validation picks; None under estimand `rate`, and for an arm without rates."""
    rates: Mapping[float, float] = field(default_factory=dict)
    """Rate -> mean test score, of an arm that ran several."""
    at_edge: bool = False
    """Whether the pick is the lowest or highest of them."""


@dataclass(frozen=True)
class Comparison:
    """One arm against the reference in one task; differences are arm minus reference."""

    task: str
    arm: str
    reference: str
    verdict: str
    """better | worse | equivalent | non_inferior | undecided."""
    estimate: float
    low: float
    high: float
    """Ends of the interval that decided the verdict, at `confidence`."""
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
    """Part of `sd` that comes from items (they flip independently between seeds); None without items."""
    note: str = ""
    """Why there is no verdict, or what is missing."""
    spread: float = math.nan
    """Sd of per-seed differences that would give an interval as wide as this one: `sd` (of one item at least) under
    estimand `rate`; more under `method`, whose interval covers every rate; infinite where an end is."""
    mde: float = math.inf
    """Smallest true difference that this arm's spread lets be called better (or worse) with probability 0.8."""
    refused: str = ""
    """Why it is not called what its interval alone would say; empty where nothing was refused."""
    p_flip: float = math.nan
    """Two-sided, of no difference, by exact sign flips of the per-seed differences, before correction (`sign_flips`);
    nan where seeds were added until it was decided."""
    decided_after: int | None = None
    """Seeds after which it was decided; None where it was not, or where the number of seeds was fixed."""
    p_non_inferior_adjusted: float | None = None
    """Of a difference of minus the margin or less; None where the study claims something else."""


@dataclass(frozen=True)
class Pair:
    """Two arms in one task, for the letters and for heat maps; first minus second.

    With the reference `p_adjusted` and `separated` are those of the verdict; of all other pairs, Holm's.
    """

    task: str
    first: str
    second: str
    estimate: float
    p: float
    p_adjusted: float
    separated: bool


@dataclass(frozen=True)
class Across:
    """One arm over all tasks, tasks and seeds both drawn; see `stats.across`. The reference has ranks alone."""

    arm: str
    tasks: int
    seeds: int
    """That it shares with the reference in every task."""
    rank: float
    """Average over tasks and seeds; 1 is best."""
    rank_low: float
    rank_high: float
    """At 1 - alpha, for this arm only."""
    verdict: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    """Ends of the interval that decided, at `confidence`: about tasks like these."""
    confidence: float = math.nan
    p_adjusted: float = math.nan
    refused: str = ""
    here_low: float = math.nan
    here_high: float = math.nan
    """At 1 - alpha, uncorrected, at the picks: about these tasks alone."""
    improvement: tuple[float, float, float] | None = None
    """Probability that a run beats one of the reference, mean over tasks, with its interval."""


@dataclass(frozen=True)
class StudyResult:
    """Everything that tables show about final runs."""

    reference: str
    metric: str
    margin: float
    alpha: float
    procedure: str
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[Pair, ...]
    design: power.Design
    """What a study of this size can show, by the same corrected test."""
    notes: tuple[str, ...] = ()
    estimand: str = "rate"
    """What the verdicts are about; see `stats.estimands`."""
    courses: Mapping[tuple[str, str], Course] | None = None
    """(task, arm) -> its looks, where seeds were added until it was decided; None: their number was fixed."""
    claim: str = "difference"
    """What the study set out to show; see `stats.rule.CLAIMS`."""
    across: tuple[Across, ...] = ()
    """One row an arm over all tasks, where there are several."""

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
