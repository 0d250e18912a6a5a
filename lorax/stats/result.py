"""Input and output of the statistics: final runs in; arms, comparisons and pairs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorax.stats import power


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
    """t interval over seeds at 1 - alpha, for this arm only (description); infinite with one seed."""
    n_seeds: int
    n_items: int
    diverged: int
    """How many of its final runs diverged."""
    letters: str = ""
    """Two arms of one task that share a letter are not separated."""


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
