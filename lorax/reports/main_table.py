"""The main table of a study: one row per arm and task, with everything a reviewer asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lorax.records import RunRecord
from lorax.reports import columns
from lorax.reports.columns import Column
from lorax.reports.frames.asymmetries import footnotes
from lorax.reports.frames.study import asymmetries
from lorax.reports.text import numbers, verdicts
from lorax.stats.result import ArmResult, Comparison
from lorax.studies.study import Study
from lorax.studies.tuning import Choice

_ARROWS = {"": "", "low": " ↓", "high": " ↑"}


@dataclass(frozen=True)
class StudyRow:
    """One arm on one task; what is not measured yet is None or empty."""

    task: str
    arm: str
    records: tuple[RunRecord, ...]
    """Final runs."""
    result: ArmResult | None
    comparison: Comparison | None
    """With the reference; None for the reference itself."""
    is_reference: bool
    choice: Choice | None
    """The learning rate and what its selection cost."""
    cost: RunRecord | None
    """The solo run with a cold cache."""
    margin: float
    """Of equivalence or non-inferiority."""
    estimand: str = "rate"
    """What the verdict is about."""
    footnotes: tuple[int, ...] = ()
    """Numbers of the asymmetries that this row has."""

    @property
    def difference(self) -> Comparison | None:
        """The comparison, where the arm has final runs."""
        return self.comparison if self.result else None

    @property
    def verdict(self) -> str:
        """One of better, worse, equivalent, non_inferior, undecided, reference; empty where nothing can be said."""
        if self.is_reference and self.result:
            return "reference"
        return self.difference.verdict if self.difference else ""

    @property
    def verdict_words(self) -> str:
        """The verdict with the bound that its interval shows, or with the margin."""
        return verdicts.words(self.difference, self.margin) if self.difference else self.verdict

    def cost_of(self, key: str) -> float | None:
        """Return one entry of the solo run's costs."""
        return self.cost.costs.get(key) if self.cost else None


def study_rows(study: Study) -> list[StudyRow]:
    """Return the rows, tasks and arms in the study's order; an incomplete study has gaps in them."""
    _, numbers_of = footnotes(asymmetries(study), study.spec.reference)
    return [
        StudyRow(
            task=task,
            arm=arm,
            records=tuple(study.finals.get((task, arm), {}).values()),
            result=study.result.arm(task, arm) if study.result else None,
            comparison=study.result.comparison(task, arm) if study.result else None,
            is_reference=arm == study.spec.reference,
            choice=study.choices.get((task, arm)),
            cost=study.costs.get((task, arm)),
            margin=study.spec.margin,
            estimand=study.spec.estimand,
            footnotes=tuple(numbers_of.get(arm, ())),
        )
        for task in study.spec.tasks
        for arm in study.spec.labels
    ]


def select(rows: Sequence[StudyRow], task: str, arms: Sequence[str]) -> list[StudyRow]:
    """Return the rows of some arms on one task, in the order of `arms`."""
    by_arm = {row.arm: row for row in rows if row.task == task}
    return [by_arm[arm] for arm in arms]


def main_table(study: Study) -> pd.DataFrame:
    """Return the numbers of the main table, one row per task and arm in the study's order; gaps are null.

    Columns are the keys of `score_columns` and `setting_columns`. Scores and differences are fractions, `low` and
    `high` a t interval over seeds at 1 - alpha, `difference_low` and `difference_high` the interval of the verdict
    at `confidence`; costs come from the solo cost run; `notes` are numbers of footnotes.
    """
    left = score_columns(study.spec.claim, study.spec.until_decided is not None, study.spec.alpha)
    return columns.frame([*KEYS, *left, *setting_columns(study.spec.estimand)], study_rows(study))


def blocks(study: Study) -> dict[str, tuple[str, ...]]:
    """Return title -> arm labels; one untitled block unless the study has several."""
    return study.spec.blocks or {"": study.spec.labels}


def _marked(row: StudyRow) -> str:
    return f"{row.arm} ({','.join(map(str, row.footnotes))})" if row.footnotes else row.arm


def _score(result: ArmResult | None) -> str:
    if result is None:
        return numbers.NOTHING
    # Scores lie in 0..1; cutting a wider interval there loses no coverage.
    low, high = (bound if math.isinf(bound) else min(max(bound, 0.0), 1.0) for bound in (result.low, result.high))
    diverged = f" ({result.diverged} diverged)" if result.diverged else ""
    return numbers.bounded(result.mean, low, high) + diverged


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _detectable(row: StudyRow) -> float | None:
    return _finite(row.difference.mde) if row.difference else None


def _difference(comparison: Comparison | None) -> str:
    return (
        numbers.bounded(comparison.estimate, comparison.low, comparison.high, signed=True)
        if comparison
        else numbers.NOTHING
    )


def _rate(choice: Choice | None) -> str:
    return numbers.rate(choice.lr) + _ARROWS[choice.edge] if choice else numbers.NOTHING


def _or_nothing(text: str) -> str:
    return text or numbers.NOTHING


def _count_above_zero(value: int) -> str:
    return numbers.count(value) if value else numbers.NOTHING


KEYS: list[Column[StudyRow]] = [
    Column("task", "", lambda row: row.task),
    Column("arm", "", lambda row: row.arm),
]


NON_INFERIOR: Column[StudyRow] = Column(
    "p_non_inferior_adjusted", "", lambda row: row.comparison and row.comparison.p_non_inferior_adjusted
)
"""In studies that claim it only: looked at beside another claim it would be chosen after the fact."""
_DECIDED_AFTER: Column[StudyRow] = Column(
    "decided_after", "after seeds", lambda row: row.comparison and row.comparison.decided_after, numbers.count
)


def score_columns(
    claim: str = "difference", until_decided: bool = False, alpha: float = 0.05
) -> list[Column[StudyRow]]:
    """Return the columns of the left half: scores and verdicts.

    Args:
        claim: of the study.
        until_decided: say after how many seeds a comparison was decided.
        alpha: of the study; an arm's own interval is at 1 - alpha.
    """
    claimed: list[Column[StudyRow]] = [NON_INFERIOR] if claim == "non_inferior" else []
    after: list[Column[StudyRow]] = [_DECIDED_AFTER] if until_decided else []
    return [
        Column("", "arm", _marked),
        Column("mean", "", lambda row: row.result and row.result.mean),
        Column("sd", "", lambda row: row.result and row.result.sd),
        Column("low", "", lambda row: row.result and row.result.low),
        Column("high", "", lambda row: row.result and row.result.high),
        Column("", f"score [{100 * (1 - alpha):g} %]", lambda row: row.result, _score),
        Column("letters", "letters", lambda row: row.result.letters if row.result else "", _or_nothing),
        Column("difference", "", lambda row: row.difference and row.difference.estimate),
        Column("difference_low", "", lambda row: row.difference and row.difference.low),
        Column("difference_high", "", lambda row: row.difference and row.difference.high),
        Column("confidence", "", lambda row: row.difference and row.difference.confidence),
        Column("", "difference [interval]", lambda row: row.difference, _difference),
        Column("verdict", "", lambda row: row.verdict),
        Column("verdict_words", "verdict", lambda row: row.verdict_words, _or_nothing),
        *after,
        Column("p_flip", "", lambda row: _finite(row.comparison.p_flip if row.comparison else None)),
        Column("p_adjusted", "", lambda row: row.comparison and row.comparison.p_adjusted),
        Column("p_equivalence_adjusted", "", lambda row: row.comparison and row.comparison.p_equivalence_adjusted),
        *claimed,
        Column("mde", "detectable", _detectable, numbers.points),
        Column("seeds", "seeds", lambda row: row.result and row.result.n_seeds, numbers.count),
        Column("items", "items", lambda row: row.result and row.result.n_items, numbers.count),
        Column("diverged", "", lambda row: row.result.diverged if row.result else 0),
        Column("estimand", "", lambda row: row.estimand),
        Column("refused", "", lambda row: row.difference.refused if row.difference else ""),
    ]


def setting_columns(estimand: str = "rate") -> list[Column[StudyRow]]:
    """Return the columns of the right half: learning rate, size and costs.

    Args:
        estimand: of the study; under `method` the rates of the window are counted, and the pilot's rate is kept.
    """
    window: list[Column[StudyRow]] = [
        Column("rates", "rates", lambda row: len(row.choice.window) if row.choice else 0, _count_above_zero),
        Column("pilot_lr", "", lambda row: row.choice and row.choice.pilot),
    ]
    return [
        Column("", "arm", _marked),
        Column("lr", "", lambda row: row.choice and row.choice.lr),
        Column("edge", "", lambda row: row.choice.edge if row.choice else ""),
        Column("", "lr", lambda row: row.choice, _rate),
        *(window if estimand == "method" else []),
        Column("points", "", lambda row: row.choice.points if row.choice else 0),
        Column("trials", "trials", lambda row: row.choice.trials if row.choice else 0, _count_above_zero),
        columns.TRAINED,
        columns.LIVE,
        columns.ETA,
        Column("init_seconds", "init s", lambda row: row.cost_of("init_seconds"), lambda s: numbers.number(s, 2)),
        Column("step_ms", "step ms", lambda row: row.cost_of("step_ms"), numbers.number),
        Column("peak_mb", "peak MB", lambda row: row.cost_of("peak_mb"), numbers.count),
        *columns.EVERYWHERE,
        Column("notes", "", lambda row: " ".join(map(str, row.footnotes))),
    ]
